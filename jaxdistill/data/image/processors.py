"""Images in the form that a checkpoint wants: `resize`, and `processed`, which does what its own config says.

They draw nothing, and so they are a part of evaluation too. What they make of an image is the same for teacher and
student, since both see one batch. Images may come in many sizes: they leave in one.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from jaxdistill.core.errors import ConfigError, WeightsError
from jaxdistill.core.hub_files import path_of, read_json
from jaxdistill.core.registry import Spec, parse, transforms
from jaxdistill.data.stream import Batch, Transform

Sides = tuple[int, int]  # height and width
FILTERS = {each.name.lower(): each for each in Image.Resampling}
HALF = (0.5, 0.5, 0.5)
CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
# What transformers' processors do where a config is silent; those of our families, and what is written like them.
COMMON = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": HALF,
    "image_std": HALF,
}
KINDS: dict[str, dict[str, Any]] = {
    "Bit": CLIP,
    "CLIP": CLIP,
    "ConvNext": {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
    "DeiT": {"size": 256, "crop_size": 224, "do_center_crop": True},
    "Siglip": {"size": {"height": 224, "width": 224}},
    "ViT": {"size": 224, "resample": 2},
}
BY_SHORTER_EDGE = ("Bit", "CLIP", "ConvNext", "Siglip")  # what a size means that is one number; else a square
BY_MODEL = {"clip": "CLIP", "deit": "DeiT", "resnet": "ConvNext", "siglip": "Siglip", "vit": "ViT"}


class Recipe(NamedTuple):
    """How an image becomes what a network sees.

    resize: the shorter edge, whatever becomes of the other; or both sides; None: as it is
    crop: the sides of the middle that is kept, with zeros where the image is smaller; None: all of it
    scale, mean, std: a grey value x becomes (scale x - mean) / std
    filter: how pixels are interpolated
    """

    resize: int | Sides | None
    crop: Sides | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: Image.Resampling


@transforms.register
def resize(size: int, filter: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic") -> Transform:
    """Scales each image until its shorter edge is `size`, and keeps the square in the middle.

    Raises:
        ValueError: `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"size {size}; give 1 or more.")

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        shaped = [_cropped(_resized(image, size, FILTERS[filter]), (size, size)) for image in _images(batch, "resize")]
        return batch | {"image": np.stack(shaped)}

    return Transform(0, apply)


@transforms.register
def processed(source: str, size: int = 0) -> Transform:
    """What a checkpoint's preprocessor_config.json says: resize, cut out the middle, rescale, normalise.

    Images become float32, which our networks take as they are; uint8 they would bring to -1..1. Grey images become grey
    ones of three channels. Other transforms may stand before it or behind it; behind it, black is not 0 any more.

    Args:
        source: a Hugging Face folder or a hub id, as of `pretrained`.
        size: of the images instead of the checkpoint's own: all of its sizes shrink or grow alike. 0: its own.

    Raises:
        WeightsError: there is no such checkpoint or config, or it is of a kind that we do not know.
        ConfigError: on a batch without images, or whose images are no uint8.
    """
    recipe = _recipe(source, size)

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        return batch | {"image": _stacked([_shaped(image, recipe) for image in _images(batch, "processed")], recipe)}

    return Transform(0, apply)


def forms(augment: Sequence[str]) -> tuple[str, ...]:
    """Those of some transforms, as spec strings, that give images their form."""
    return tuple(spec for spec in augment if parse(spec, "data.augment").name in ("resize", "processed"))


def config_of(augment: Sequence[str], image: tuple[int, ...], dtype: np.dtype) -> dict[str, Any] | None:
    """What transformers' image processor shall do, so that a network sees there what it saw here.

    Args:
        augment: the transforms, as spec strings.
        image: height, width and channels, as the network saw them.
        dtype: in which it saw them.

    Returns:
        A preprocessor_config.json; None where transformers has no processor for it.
    """
    height, width, channels = image
    half = (0.5,) * channels  # of uint8, which our networks bring to -1..1
    match [parse(spec, "data.augment") for spec in forms(augment)]:
        case [Spec("processed") as spec]:
            return _written(_recipe(*_arguments(processed, spec)), channels)
        case [Spec("resize") as spec]:
            size, how = _arguments(resize, spec)
            return _written(Recipe(size, (size, size), 1 / 255, half, half, FILTERS[how]), channels)
        case [] if dtype == np.uint8:
            return _written(Recipe((height, width), None, 1 / 255, half, half, FILTERS["bicubic"]), channels)
    return None


def _arguments(factory: Callable[..., Transform], spec: Spec) -> tuple[Any, ...]:
    bound = inspect.signature(factory).bind(*spec.args, **spec.kwargs)
    bound.apply_defaults()
    return bound.args


def _written(recipe: Recipe, channels: int) -> dict[str, Any]:
    """As transformers writes a recipe. Its processor for ViT does whatever it is told, in the order of ours."""
    both = lambda sides: {"height": sides[0], "width": sides[1]}
    each = lambda values: values if len(values) == channels else values * channels  # it wants one for each channel
    resize = (
        {"shortest_edge": recipe.resize} if isinstance(recipe.resize, int) else recipe.resize and both(recipe.resize)
    )
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": bool(resize),
        **({"size": resize} if resize else {}),
        "resample": int(recipe.filter),
        "do_center_crop": bool(recipe.crop),
        **({"crop_size": both(recipe.crop)} if recipe.crop else {}),
        "do_rescale": True,
        "rescale_factor": recipe.scale,
        "do_normalize": True,
        "image_mean": each(recipe.mean),
        "image_std": each(recipe.std),
    }


def _recipe(source: str, size: int) -> Recipe:
    own = read(path_of(source))
    return scaled(own, size) if size else own


def read(folder: Path) -> Recipe:
    """The recipe of a checkpoint.

    Raises:
        WeightsError: it has none, or one of a kind that we do not know.
    """
    config = _config(folder)
    kind = _kind(folder, config)
    said = {**COMMON, **KINDS[kind], **{name: value for name, value in config.items() if value is not None}}
    if kind == "ConvNext" and said["do_center_crop"]:
        raise WeightsError(f"the images of {folder} are cut twice, which we do not do; remove do_center_crop")
    edge = kind in BY_SHORTER_EDGE
    resize = _sides(folder, said["size"], edge) if said["do_resize"] else None
    crop = _sides(folder, said["crop_size"], False) if said["do_center_crop"] else None
    if kind == "ConvNext" and isinstance(resize, int):
        square = (resize, resize)
        resize, crop = (int(resize / said["crop_pct"]), square) if resize < 384 else (square, None)
    assert not isinstance(crop, int)
    normal = said["do_normalize"]
    return Recipe(
        resize,
        crop,
        said["rescale_factor"] if said["do_rescale"] else 1.0,
        _channels(said["image_mean"]) if normal else (0.0,),
        _channels(said["image_std"]) if normal else (1.0,),
        Image.Resampling(said["resample"]),
    )


def _config(folder: Path) -> Mapping[str, Any]:
    """Of the image processor: in a file of its own, or, as transformers 5 writes it, in that of the whole processor."""
    nested = folder / "processor_config.json"
    if nested.is_file() and "image_processor" in (found := read_json(nested)):
        return found["image_processor"]
    return read_json(folder / "preprocessor_config.json")


def _kind(folder: Path, config: Mapping[str, Any]) -> str:
    named = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    kind = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", named)
    if not kind and (folder / "config.json").is_file():
        kind = BY_MODEL.get(read_json(folder / "config.json").get("model_type", ""), "")
    if kind not in KINDS:
        known = ", ".join(f"{each}ImageProcessor" for each in KINDS)
        raise WeightsError(f"the images of {folder} are processed by {named!r}, and none of ours. Known: {known}")
    return kind


def _sides(folder: Path, size: Any, edge: bool) -> int | Sides:
    match size:
        case int():
            return size if edge else (size, size)
        case {"height": int(height), "width": int(width)} | [int(height), int(width)]:
            return height, width
        case {"shortest_edge": int(shortest)} if len(size) == 1:
            return shortest
    raise WeightsError(
        f"the images of {folder} shall have the size {size!r}; known are height and width, shortest_edge"
    )


def _channels(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (float(value),)


def scaled(recipe: Recipe, size: int) -> Recipe:
    """The recipe for images of another size.

    Raises:
        ValueError: it leaves every image in its own size, or `size` is negative.
    """
    own = recipe.crop or recipe.resize
    if own is None or size < 1:
        raise ValueError(f"size {size}, where the checkpoint says {own}; leave it out, or put resize(size=...) before.")
    factor = size / (own if isinstance(own, int) else own[0])
    both = lambda sides: sides and (round(sides[0] * factor), round(sides[1] * factor))
    edge = recipe.resize
    return recipe._replace(resize=round(edge * factor) if isinstance(edge, int) else both(edge), crop=both(recipe.crop))


def _shaped(image: np.ndarray, recipe: Recipe) -> np.ndarray:
    """One image in its new size, still uint8."""
    if image.dtype != np.uint8:
        cure = "Put it before what makes numbers of other kinds"
        raise ConfigError("data.augment", f"'processed' needs images of uint8, not of {image.dtype}. {cure}.")
    wanted = len(recipe.mean)
    if wanted > 1 and image.shape[-1] not in (1, wanted):
        raise ConfigError("data.augment", f"'processed' needs {wanted} channels or 1, not {image.shape[-1]}.")
    if recipe.resize is not None:
        image = _resized(image, recipe.resize, recipe.filter)
    image = _cropped(image, recipe.crop) if recipe.crop else image
    return np.broadcast_to(image, (*image.shape[:2], max(wanted, image.shape[-1])))


def _stacked(images: list[np.ndarray], recipe: Recipe) -> np.ndarray:
    """The images as numbers; those that differ in size stay apart, and the stream says what to do about it."""
    mean, std = np.array(recipe.mean, np.float32), np.array(recipe.std, np.float32)
    numbers = lambda x: (x.astype(np.float32) * np.float32(recipe.scale) - mean) / std
    if len({image.shape for image in images}) == 1:
        return numbers(np.stack(images))
    return np.fromiter(map(numbers, images), dtype=object, count=len(images))


def _resized(image: np.ndarray, size: int | Sides, how: Image.Resampling) -> np.ndarray:
    """`[height, width, channels]` in another size; by Pillow, as transformers does."""
    height, width = image.shape[:2]
    if isinstance(size, int):
        short = min(height, width)
        size = (int(size * height / short), int(size * width / short))
    if size == (height, width):
        return image
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return np.asarray(Image.fromarray(image).resize(size[::-1], how))
    plain = image if image.dtype == np.uint8 else image.astype(np.float32)  # Pillow knows no other floats
    channels = [np.asarray(Image.fromarray(x).resize(size[::-1], how)) for x in np.moveaxis(plain, -1, 0)]
    return np.stack(channels, -1).astype(image.dtype)


def _cropped(image: np.ndarray, sides: Sides) -> np.ndarray:
    """The middle; where the image is smaller, it stands in the middle of zeros, as in transformers."""
    missing = [max(0, side - has) for side, has in zip(sides, image.shape[:2], strict=True)]
    padded = np.pad(image, [*((-(-n // 2), n // 2) for n in missing), (0, 0)]) if any(missing) else image
    top, left = ((has - side) // 2 for has, side in zip(padded.shape[:2], sides, strict=True))
    return padded[top : top + sides[0], left : left + sides[1]]


def _images(batch: Batch, name: str) -> np.ndarray:
    """`[rows, height, width, channels]`, or `[rows]` of images in many sizes."""
    image = batch.get("image")
    if image is None or np.ndim(image[0]) != 3:
        found = ", ".join(f"{field} {list(value.shape)}" for field, value in batch.items())
        cure = "Remove it, or give the records an 'image'"
        raise ConfigError("data.augment", f"{name!r} needs image [rows, height, width, channels], not {found}. {cure}.")
    return image
