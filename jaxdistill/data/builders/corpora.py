"""Builder of six English corpora for language models, from Debian packages: `plain_english`.

The corpora have clearly different styles. A record (example) is a document. One document in ten, selected by the hash
of its text, is in the test split. Importing this module registers the builder.
"""

import gzip
import itertools
import re
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from jaxdistill.core import packages
from jaxdistill.data.builders.texts import Texts


class Corpus(NamedTuple):
    """A text corpus inside a Debian package, and the function that reads the corpus.

    package: name of the Debian package
    read: `(folder of the unpacked package) -> documents`, yields one text per document
    licence: licence of the texts
    citation: bibliographic reference of the corpus
    """

    package: str
    read: Callable[[Path], Iterator[str]]
    licence: str
    citation: str


def bible(root: Path) -> str:
    """Read the King James Bible from its Debian package as one text with one verse per line.

    The first lines are a title, and a verse looks like `Ge1:1 In the beginning ...`. The package stores the text in
    windows of 64 KiB, each in the format of Unix `compress` but without the header of this format.

    Args:
        root: folder of the unpacked Debian package bible-kjv-text.
    """
    content = (root / "usr/lib/bible.data").read_bytes()
    _, _, windows, first = struct.unpack_from(">4I", content, 0x50)
    starts = (first, *struct.unpack_from(f">{windows}I", content, 0x60))
    header = b"\x1f\x9d\x90"  # compress in block mode, with codes of at most 16 bits
    files = (header + content[start:stop] for start, stop in itertools.pairwise(starts))
    text = b"".join(subprocess.run(["gzip", "-dc"], input=f, capture_output=True, check=True).stdout for f in files)
    return text.decode("latin-1")


def _kjv(root: Path) -> Iterator[str]:
    """Read the chapters of the King James Bible."""
    chapters: dict[str, list[str]] = {}
    for chapter, verse in re.findall(r"^(\w+):\d+ (.*)$", bible(root), re.MULTILINE):
        chapters.setdefault(chapter, []).append(verse)
    return map("\n".join, chapters.values())


def _dictionary(name: str) -> Callable[[Path], Iterator[str]]:
    """Return a function that reads the entries of a dictd dictionary from the folder of its unpacked package.

    The dictionary consists of a compressed text, and an index with the offset and size of each entry in base 64.

    Args:
        name: name of the dictionary's files, such as `foldoc`.
    """
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def number(word: str) -> int:
        value = 0
        for letter in word:
            value = 64 * value + digits.index(letter)
        return value

    def read(root: Path) -> Iterator[str]:
        folder = root / "usr/share/dictd"
        text = gzip.decompress((folder / f"{name}.dict.dz").read_bytes())
        lines = (line.split("\t") for line in (folder / f"{name}.index").read_text("utf-8").splitlines())
        places = {(number(at), number(size)) for word, at, size in lines if not word.startswith("00")}
        return (text[at : at + size].decode("utf-8", "replace").strip() for at, size in sorted(places))

    return read


def _python_docs(root: Path) -> Iterator[str]:
    """Read the pages of the Python documentation, as reStructuredText."""
    sources = root / "usr/share/doc/python3.13/html/_sources"
    return (file.read_text("utf-8").strip() for file in sorted(sources.rglob("*.rst.txt")))


def novels(root: Path) -> Iterator[str]:
    """Yield Jane Austen's six novels, one text each, with the line breaks of the printed edition.

    The package stores each novel as an R vector with one string per line: 4 bytes for the compressed length, then zlib
    data. The decompressed data are a header that ends with the name of the encoding, the type of the vector, the number
    of lines, and for each line the flags, the length in bytes and the characters.

    Args:
        root: folder of the unpacked Debian package r-cran-janeaustenr.
    """
    rest = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    while rest:
        stream = zlib.decompressobj()
        novel, rest = stream.decompress(rest[4:]), stream.unused_data
        at = 18 + struct.unpack_from(">I", novel, 14)[0] + 4
        count, at = struct.unpack_from(">I", novel, at)[0], at + 4
        lines = []
        for _ in range(count):
            length = max(0, struct.unpack_from(">i", novel, at + 4)[0])  # -1 is a missing line
            lines.append(novel[at + 8 : at + 8 + length].decode())
            at += 8 + length
        yield "\n".join(lines)


def _austen(root: Path) -> Iterator[str]:
    """Read the chapters of Jane Austen's novels."""
    for novel in novels(root):
        chapters = re.split(r"^(?:CHAPTER|Chapter) [IVXL\d]+$", novel, flags=re.MULTILINE)
        yield from (chapter.strip() for chapter in chapters[1:])  # text before the first chapter: title and author


def _wordnet(root: Path) -> Iterator[str]:
    """Read the synsets (sets of synonyms) of WordNet, one text each: `words: definition`."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (root / "usr/share/wordnet" / f"data.{part}").read_text("utf-8").splitlines():
            if not line.startswith("  "):  # the licence
                head, _, gloss = line.partition("|")
                fields = head.split()
                words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                yield f"{', '.join(words).replace('_', ' ')}: {gloss.strip()}"


CORPORA = {
    "kjv": Corpus("bible-kjv-text", _kjv, "public domain", "The Bible, King James Version, 1611"),
    "foldoc": Corpus(
        "dict-foldoc",
        _dictionary("foldoc"),
        "GFDL-1.1",
        "The Free On-line Dictionary of Computing, https://foldoc.org, editor Denis Howe",
    ),
    "python_docs": Corpus("python3.13-doc", _python_docs, "PSF-2.0", "Python documentation, https://docs.python.org"),
    "gcide": Corpus(
        "dict-gcide",
        _dictionary("gcide"),
        "GPL-2.0-or-later",
        "The GNU Collaborative International Dictionary of English, from Webster's of 1913 and WordNet",
    ),
    "austen": Corpus("r-cran-janeaustenr", _austen, "public domain", "The six novels of Jane Austen, 1811 to 1817"),
    "wordnet": Corpus("wordnet-base", _wordnet, "WordNet-3.0", "Miller: WordNet: A lexical database for English, 1995"),
}


class PlainEnglish(Texts):
    """Six English text corpora, each a configuration of this data set; an example is one document, in the field `text`.

    - `kjv`: 1,189 chapters of the King James Bible (public domain).
    - `foldoc`: entries of the Free On-line Dictionary of Computing (GFDL).
    - `python_docs`: 507 pages of the Python 3.13 documentation (PSF licence).
    - `gcide`: entries of the GNU Collaborative International Dictionary of English (GPL).
    - `austen`: chapters of Jane Austen's six novels (public domain).
    - `wordnet`: 117,659 definitions of WordNet 3.0, each after the words that it defines (WordNet licence).

    The texts come from Debian packages, in the versions that the system's package manager offers. Compare only runs
    that used the same prepared copy, because copies that were prepared on different systems may differ.
    """

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in CORPORA]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        corpus = CORPORA[self.builder_config.name]
        self.LICENCE, self.CITATION = corpus.licence, corpus.citation
        return self._text_info(f"{corpus.citation}; from Debian's {corpus.package}", {})

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        corpus = CORPORA[self.builder_config.name]
        with tempfile.TemporaryDirectory() as folder:
            packages.debian(corpus.package, Path(folder))
            documents = list(corpus.read(Path(folder)))
        return self._split_by_hash([{"text": document} for document in documents if document], one_in=10)
