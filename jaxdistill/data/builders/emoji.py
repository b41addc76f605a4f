"""Builders of emoji in two styles: `emoji/STYLE` with classes, `emoji_names/STYLE` with names; STYLE may be `both`.

Ordinary TensorFlow Datasets builders that read files from npm packages. Emoji are small colour images of things;
photographs would be too large to ship. Importing this module registers the builders.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxdistill.core import packages
from jaxdistill.data.builders.texts import text_hash

Record = dict[str, Any]
STYLES = ("twitter", "google")
LANGUAGES = (  # languages of names beside English
    *("bn", "da", "de", "en-gb", "es", "es-mx", "et", "fi", "fr", "hi", "hu", "it", "ja", "ko", "lt", "ms", "nb", "nl"),
    *("pl", "pt", "ru", "sv", "th", "uk", "vi", "zh", "zh-hant"),
)
ONE_IN = 5  # one emoji in five is in the test split
CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Component",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
SUBCATEGORIES = (
    "alphanum animal-amphibian animal-bird animal-bug animal-mammal animal-marine animal-reptile arrow arts&crafts "
    "av-symbol award-medal body-parts book-paper cat-face clothing computer country-flag currency dishware drink "
    "emotion event face-affection face-concerned face-costume face-glasses face-hand face-hat face-negative "
    "face-neutral-skeptical face-sleepy face-smiling face-tongue face-unwell family flag food-asian food-fruit "
    "food-prepared food-sweet food-vegetable game gender geometric hand-fingers-closed hand-fingers-open "
    "hand-fingers-partial hand-prop hand-single-finger hands heart hotel household keycap light&video lock mail math "
    "medical money monkey-face music musical-instrument office other-object other-symbol person person-activity "
    "person-fantasy person-gesture person-resting person-role person-sport person-symbol phone place-building "
    "place-geographic place-map place-other place-religious plant-flower plant-other punctuation religion science "
    "skin-tone sky&weather sound sport subdivision-flag time tool transport-air transport-ground transport-sign "
    "transport-water warning writing zodiac"
)


class Emoji(tfds.core.GeneratorBasedBuilder):
    """1,911 emoji as images of 64x64 pixels, each in the styles of Twitter and of Google.

    The configurations are `twitter`, `google` and `both` (the images of both styles). The fields besides `image` are:

    - `label`: Unicode's category of the emoji, one of 10.
    - `subcategory`: Unicode's subcategory of the emoji, one of 99.
    - `style`: `twitter` or `google`.

    A hash of the emoji's Unicode code points puts one emoji in five into the test split, so that both styles of an
    emoji are in the same split. Emoji that look the same, such as the flags of Norway and of Bouvet Island, are in the
    same split too. Transparent pixels are white. Variants with other skin tones are left out: these variants would
    double the size of the data set, but differ in one colour only and all belong to one category.

    Source: the npm packages emoji-datasource-twitter and emoji-datasource-google 16.0.0. Licences of the pictures: CC
    BY 4.0 (Twitter and other contributors) and Apache-2.0 (Google).

    References:
        Unicode, Inc.: Unicode emoji, version 16.0, 2024. https://unicode.org/emoji/charts/emoji-ordering.html
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in (*STYLES, "both"))

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji as Twitter and Google draw them, from emoji-datasource 16.0.0",
            license="CC BY 4.0 (Twitter), Apache-2.0 (Google)",
            citation="Unicode, Inc.: Unicode emoji, version 16.0, 2024",
            features=tfds.features.FeaturesDict(_picture_features()),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # TFDS would sort by a hash of the key
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # downloads URLs; packages need their own client
        fields, splits = _picture_features(), _splits(self.builder_config.name)
        return {
            split: self._generate_examples({field: record[field] for field in fields} for record in records)
            for split, records in splits.items()
        }

    def _generate_examples(self, records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(records)


class EmojiNames(tfds.core.GeneratorBasedBuilder):
    """1,911 emoji as images of 64x64 pixels, each with its name in English and 27 other languages.

    The configurations are `twitter`, `google` and `both` (the images of both styles, which share a name). The fields
    besides `image` are:

    - `text`: Unicode's short name in English, such as "grinning squinting face".
    - `text_de`, `text_zh_hant`, ...: the name in another language.
    - `label`, `subcategory`, `style`: as in the data set `emoji`, which also has the same splits.

    Source: the npm packages emoji-datasource-twitter and emoji-datasource-google 16.0.0, and emojibase-data 17.0.0.
    Licences: CC BY 4.0 (pictures of Twitter and other contributors), Apache-2.0 (Google), MIT (names, from the Unicode
    Common Locale Data Repository).

    References:
        Unicode, Inc.: CLDR annotations, 2025. https://cldr.unicode.org/translation/characters/short-names-and-keywords
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in (*STYLES, "both"))

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("text", *(_field(language) for language in LANGUAGES))
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji and their names in 28 languages, from emoji-datasource 16.0.0 and emojibase-data 17.0.0",
            license="CC BY 4.0 (Twitter), Apache-2.0 (Google), MIT (names)",
            citation="Unicode, Inc.: CLDR annotations, 2025",
            features=tfds.features.FeaturesDict(
                {**_picture_features(), **{name: tfds.features.Text() for name in names}}
            ),
            supervised_keys=("image", "text"),
            disable_shuffling=True,  # TFDS would sort by a hash of the key
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # downloads URLs; packages need their own client
        with tempfile.TemporaryDirectory() as folder:
            packages.npm("emojibase-data@17.0.0", Path(folder))
            names = {language: _names(Path(folder), language) for language in ("en", *LANGUAGES)}

        def named(records: Iterable[Record]) -> Iterable[Record]:
            for record in records:
                code = record.pop("code")
                others = {_field(language): names[language][code] for language in LANGUAGES}
                yield {**record, "text": names["en"][code], **others}

        splits = _splits(self.builder_config.name)
        return {split: self._generate_examples(named(records)) for split, records in splits.items()}

    def _generate_examples(self, records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(records)


def _picture_features() -> dict[str, Any]:
    """Return the features that `emoji` and `emoji_names` share, by field: the image, its two classes and its style."""
    return {
        "image": tfds.features.Tensor(shape=(64, 64, 3), dtype=np.uint8, encoding="zlib"),
        "label": tfds.features.ClassLabel(names=CATEGORIES),
        "subcategory": tfds.features.ClassLabel(names=SUBCATEGORIES.split()),
        "style": tfds.features.ClassLabel(names=STYLES),
    }


def _field(language: str) -> str:
    """Return the name of the field with the emoji names in a language, such as `text_zh_hant` for zh-hant."""
    return f"text_{language.replace('-', '_')}"


def _names(folder: Path, language: str) -> dict[str, str]:
    """Return the name of each emoji in a language, as a dict by code points without variation selectors."""
    entries = json.loads((folder / "package" / language / "data.json").read_text())
    return {_plain(entry["hexcode"]): entry["label"] for entry in entries}


def _plain(code: str) -> str:
    """Return an emoji's code points without variation selectors, which one package writes and the other leaves out."""
    return code.replace("-FE0F", "")


def _splits(config: str) -> dict[str, list[Record]]:
    """Return a list of records for each of the splits `train` and `test`.

    Besides the fields of the data set, a record has the field `code`, the code points of the emoji.

    Args:
        config: "twitter", "google" or "both".
    """
    styles = STYLES if config == "both" else (config,)
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    with tempfile.TemporaryDirectory() as folder:
        folders = {style: Path(folder, style) for style in STYLES}
        for style, package in folders.items():
            package.mkdir()
            packages.npm(f"emoji-datasource-{style}@16.0.0", package)
        for number, record in _hashed_pictures(folders):
            if record["style"] in styles:
                splits["train" if number % ONE_IN else "test"].append(record)
    return splits


def _hashed_pictures(folders: dict[str, Path]) -> list[tuple[int, Record]]:
    """Read the pictures of all emoji in all styles, as a list of pairs (hash, record) that is sorted by the hash.

    The hash decides the split of the record. Emoji that look the same in one style get the hash of the first of them.
    Therefore both styles are always read, even for a data set with one style.

    Args:
        folders: folder of the unpacked package of each style.
    """
    emoji = json.loads((folders[STYLES[0]] / "package" / "emoji.json").read_text())
    records, hash_of_pixels = [], dict[bytes, int]()
    for entry in sorted(emoji, key=lambda entry: entry["unified"]):
        pictures = {style: _picture(package, style, entry["image"]) for style, package in folders.items()}
        pixels = [picture.tobytes() for picture in pictures.values()]
        number = next((hash_of_pixels[p] for p in pixels if p in hash_of_pixels), text_hash(entry["unified"]))
        hash_of_pixels |= dict.fromkeys(pixels, number)
        about = {
            "label": entry["category"],
            "subcategory": entry["subcategory"].replace(" & ", "&"),
            "code": _plain(entry["unified"]),
        }
        records += [(number, {"image": picture, "style": style, **about}) for style, picture in pictures.items()]
    return sorted(records, key=lambda pair: pair[0])


def _picture(package: Path, style: str, name: str) -> np.ndarray:
    """Read one picture, `[64, 64, 3]` uint8, on a white background; the file is in RGBA, greyscale or palette mode."""
    with Image.open(package / "package" / "img" / style / "64" / name) as image:
        rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
