"""Pictures of emoji in two styles, from packages: `emoji/twitter`, `emoji/google` and `emoji/both`.

An ordinary TensorFlow Datasets builder over files found in packages, as in digits.py: small colour images of things, as
photographs of them are too large to ship. Importing this module registers it.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxdistill.core import packages
from jaxdistill.data.builders.texts import place

Record = dict[str, Any]
STYLES = ("twitter", "google")
ONE_IN = 5  # emoji is for the test
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
    """1,911 emoji, 64x64 pixels, as Twitter and as Google draw them; `label` is Unicode's category.

    Configurations `twitter`, `google`, and `both` styles; `style` tells which, and `subcategory` is the finer of
    Unicode's two divisions, of 99 classes. One emoji in five is for the test. The hash of its code points decides, so
    that both styles of an emoji are on one side; so are emoji that look alike, such as the flags of Norway and of
    Bouvet Island. Transparency is composed on white. Skin tones are left out: they would double the set with pictures
    that differ in one colour, all of them in one category.

    From the npm packages emoji-datasource-twitter and emoji-datasource-google 16.0.0 (pictures: CC BY 4.0, Twitter and
    other contributors; Apache-2.0, Google).

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
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(64, 64, 3), dtype=np.uint8, encoding="zlib"),
                    "label": tfds.features.ClassLabel(names=CATEGORIES),
                    "subcategory": tfds.features.ClassLabel(names=SUBCATEGORIES.split()),
                    "style": tfds.features.ClassLabel(names=STYLES),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # TFDS would sort by a hash of the key
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # it downloads addresses; a package comes by its client
        with tempfile.TemporaryDirectory() as folder:
            folders = {style: Path(folder, style) for style in STYLES}
            for style, package in folders.items():
                package.mkdir()
                packages.npm(f"emoji-datasource-{style}@16.0.0", package)
            named = self.builder_config.name
            styles = STYLES if named == "both" else (named,)
            halves: dict[str, list[Record]] = {"train": [], "test": []}
            for where, record in _placed(folders):
                if record["style"] in styles:
                    halves["train" if where % ONE_IN else "test"].append(record)
        return {split: self._generate_examples(half) for split, half in halves.items()}

    def _generate_examples(self, records: Iterable[Record]):
        yield from enumerate(records)


def _placed(folders: dict[str, Path]) -> list[tuple[int, Record]]:
    """Every picture, and the number that decides where it lies, in the order of those numbers.

    Both styles are always read: emoji that look alike in one of them share the number of the first.
    """
    emoji = json.loads((folders[STYLES[0]] / "package" / "emoji.json").read_text())
    found, first = [], dict[bytes, int]()
    for each in sorted(emoji, key=lambda each: each["unified"]):
        pictures = {style: _picture(package, style, each["image"]) for style, package in folders.items()}
        looks = {style: picture.tobytes() for style, picture in pictures.items()}
        where = next((first[look] for look in looks.values() if look in first), place(each["unified"]))
        first |= dict.fromkeys(looks.values(), where)
        label, subcategory = each["category"], each["subcategory"].replace(" & ", "&")
        for style, picture in pictures.items():
            found.append((where, {"image": picture, "label": label, "subcategory": subcategory, "style": style}))
    return sorted(found, key=lambda pair: pair[0])


def _picture(package: Path, style: str, name: str) -> np.ndarray:
    """`[64, 64, 3]`, on white; some of the files hold colours, some grey values, and some a palette."""
    with Image.open(package / "package" / "img" / style / "64" / name) as image:
        drawn = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB"))
