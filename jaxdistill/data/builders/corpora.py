"""Plain English to model, from Debian packages: the six configurations of `plain_english`.

Corpora of clearly different styles, for teachers and students that learn to go on with a text. A record is a document;
one in ten, drawn by the hash of its text, is for the test. Importing this module registers the builder.
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
from typing import NamedTuple

import tensorflow_datasets as tfds

from jaxdistill.core import packages
from jaxdistill.data.builders.texts import Texts


class Corpus(NamedTuple):
    """Where a corpus lies, and what may be done with it.

    read: folder of the unpacked package -> documents
    """

    package: str
    read: Callable[[Path], Iterator[str]]
    licence: str
    citation: str


def bible(root: Path) -> str:
    """The King James Bible, a title and then a verse in each line, `Ge1:1 In the beginning ...`.

    The file holds windows of 64 KiB as Unix `compress` would write them, each without its header.
    """
    content = (root / "usr/lib/bible.data").read_bytes()
    _, _, windows, first = struct.unpack_from(">4I", content, 0x50)
    starts = (first, *struct.unpack_from(f">{windows}I", content, 0x60))
    header = b"\x1f\x9d\x90"  # compress, in blocks, of at most 16 bits
    pieces = (header + content[start:stop] for start, stop in itertools.pairwise(starts))
    text = b"".join(subprocess.run(["gzip", "-dc"], input=p, capture_output=True, check=True).stdout for p in pieces)
    return text.decode("latin-1")


def _kjv(root: Path) -> Iterator[str]:
    """Chapters."""
    chapters: dict[str, list[str]] = {}
    for chapter, verse in re.findall(r"^(\w+):\d+ (.*)$", bible(root), re.MULTILINE):
        chapters.setdefault(chapter, []).append(verse)
    return map("\n".join, chapters.values())


def _dictionary(name: str) -> Callable[[Path], Iterator[str]]:
    """Entries of a dictionary in the format of dictd: an index of places, base 64, in a compressed text."""
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
    """Pages, as they were written, in reStructuredText."""
    sources = root / "usr/share/doc/python3.13/html/_sources"
    return (file.read_text("utf-8").strip() for file in sorted(sources.rglob("*.rst.txt")))


def novels(root: Path) -> Iterator[str]:
    """Jane Austen's six novels, with the lines of the print.

    R keeps each as a vector of lines: its length, then zlib; inside, a header that ends with the name of the encoding,
    then type, number of lines, and for each line flags, length and characters.
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
    """Chapters."""
    for novel in novels(root):
        chapters = re.split(r"^(?:CHAPTER|Chapter) [IVXL\d]+$", novel, flags=re.MULTILINE)
        yield from (chapter.strip() for chapter in chapters[1:])  # before the first: title and author


def _wordnet(root: Path) -> Iterator[str]:
    """Synsets, as `words: gloss`."""
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
    """Six corpora of plain English, one a configuration; a record holds nothing but `text`, a document.

    `kjv`: 1,189 chapters of the King James Bible (public domain). `foldoc`: entries of the Free On-line Dictionary of
    Computing (GFDL). `python_docs`: 507 pages of the Python 3.13 documentation (PSF). `gcide`: entries of the GNU
    Collaborative International Dictionary of English (GPL). `austen`: chapters of Jane Austen's six novels (public
    domain). `wordnet`: 117,659 glosses of WordNet 3.0 (WordNet licence).

    From Debian's packages, whose versions are the system's: what is compared must come from one preparation.
    """

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in CORPORA]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        corpus = CORPORA[self.builder_config.name]
        self.LICENCE, self.CITATION = corpus.licence, corpus.citation
        return self._described(f"{corpus.citation}; from Debian's {corpus.package}", {})

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        corpus = CORPORA[self.builder_config.name]
        with tempfile.TemporaryDirectory() as folder:
            packages.debian(corpus.package, Path(folder))
            documents = list(corpus.read(Path(folder)))
        return self._halves([{"text": document} for document in documents if document], one_in=10)
