"""Tests of the emoji data sets: white backgrounds, splits that share no picture, contents and names."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdistill.core.packages import default_folder
from jaxdistill.data import check_name, open_records
from jaxdistill.data.builders import emoji

NAMES = [f"1F{number:03X}" for number in range(40)]


def picture(number: int, style: str) -> Image.Image:
    """Draw a coloured square on a transparent background, as a palette image if the number is odd and else as RGBA."""
    colour = (number, 2 * number, len(style), 255)
    drawn = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    drawn.paste(colour, (16, 16, 48, 48))
    return drawn.quantize(4) if number % 2 else drawn


@pytest.fixture
def packages(tmp_path):
    """Write packages of 40 emoji in two styles; 3 and 7 look alike in Google's style, 7 and 11 in Twitter's."""
    alike = {("google", 7): 3, ("twitter", 11): 7}
    listed = [
        {"unified": name, "image": f"{name}.png", "category": "Objects", "subcategory": "arts & crafts"}
        for name in NAMES
    ]
    for style in emoji.STYLES:
        folder = tmp_path / style / "package"
        (folder / "img" / style / "64").mkdir(parents=True)
        (folder / "emoji.json").write_text(json.dumps(listed))
        for number, name in enumerate(NAMES):
            drawn = picture(alike.get((style, number), number), style)
            drawn.save(folder / "img" / style / "64" / f"{name}.png")
    return {style: tmp_path / style for style in emoji.STYLES}


def test_pictures_stand_on_white(packages):
    for number in (4, 5):  # an RGBA image and a palette image
        found = emoji._picture(packages["google"], "google", f"{NAMES[number]}.png")
        assert found.shape == (64, 64, 3) and found.dtype == np.uint8
        assert (found[0] == 255).all() and found[20, 20].tolist() == [number, 2 * number, 6]


def test_grey_pictures_with_transparency_stand_on_white_too(tmp_path):
    folder = tmp_path / "package" / "img" / "google" / "64"
    folder.mkdir(parents=True)
    grey = Image.new("LA", (64, 64), (100, 0))
    grey.paste((100, 255), (0, 0, 32, 64))
    grey.save(folder / "x.png")
    found = emoji._picture(tmp_path, "google", "x.png")
    assert (found[:, :32] == 100).all() and (found[:, 32:] == 255).all()


def test_styles_and_look_alikes_lie_at_one_place(packages):
    placed = emoji._hashed_pictures(packages)
    assert len(placed) == 80 and [where for where, _ in placed] == sorted(where for where, _ in placed)
    where = {}
    for place, record in placed:
        assert record["label"] == "Objects" and record["subcategory"] == "arts&crafts"
        where.setdefault(record["image"].tobytes(), set()).add(place)
    assert all(len(places) == 1 for places in where.values())
    assert len({place for place, _ in placed}) == 38  # 3, 7 and 11 share a place, because 7 looks like both others


def test_its_configurations_are_known_without_network(tmp_path):
    check_name("emoji/both", tmp_path)
    assert {config.name for config in emoji.Emoji.BUILDER_CONFIGS} == {"twitter", "google", "both"}


@pytest.mark.slow
def test_what_is_in_the_set():
    found = {}
    for name, size in (("twitter", 1), ("google", 1), ("both", 2)):
        for split, emojis in (("train", 1498), ("test", 413)):
            records = open_records(f"emoji/{name}", split, default_folder(), "data", "train")
            found[name, split] = records.take(np.arange(len(records)))
            assert len(records) == size * emojis and records.classes == 10
    assert np.bincount(found["google", "train"]["label"]).tolist() == [69, 126, 3, 206, 107, 219, 288, 134, 177, 169]
    both = {split: {image.tobytes() for image in found["both", split]["image"]} for split in ("train", "test")}
    assert not both["train"] & both["test"]
    for number, name in enumerate(emoji.STYLES):
        own = found["both", "test"]["style"] == number
        assert np.array_equal(found["both", "test"]["image"][own], found[name, "test"]["image"])
    tenth = found["both", "train"]["label"][:600]  # any part has the classes of all, because the order is random
    assert (
        np.abs(np.bincount(tenth, minlength=10) / 600 - np.bincount(found["both", "train"]["label"]) / 2996).max()
        < 0.05
    )


def test_names_are_those_of_the_picture_whatever_its_variation_selector(packages, tmp_path, monkeypatch):
    for language in ("en", *emoji.LANGUAGES):
        place = tmp_path / "names" / "package" / language
        place.mkdir(parents=True)
        entries = [
            {"hexcode": f"{name}-FE0F" if n % 2 else name, "label": f"{language} {n}"} for n, name in enumerate(NAMES)
        ]
        (place / "data.json").write_text(json.dumps(entries))
    sources = {f"emoji-datasource-{style}@16.0.0": folder for style, folder in packages.items()}
    sources["emojibase-data@17.0.0"] = tmp_path / "names"
    fetch = lambda package, folder: shutil.copytree(sources[package], folder, dirs_exist_ok=True)
    monkeypatch.setattr(emoji.packages, "npm", fetch)
    opened = [
        open_records("emoji_names/google", split, tmp_path / "data", "data", split) for split in ("train", "test")
    ]
    columns = [records.take(np.arange(len(records))) for records in opened]
    assert sum(map(len, opened)) == 40
    for each in columns:
        for picture, text, german in zip(each["image"], each["text"], each["text_de"], strict=True):
            number = int(text.decode().removeprefix("en "))
            assert german.decode() == f"de {number}" and picture[20, 20, 0] in (number, 3)  # 7 looks like 3
