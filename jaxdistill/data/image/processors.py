"""Image preprocessing: `resize`, and `processed`, which follows the preprocessor_config.json of a checkpoint.

Both transforms are deterministic, so they are applied in evaluation too. Teacher and student see the same processed
images, because they read the same batch. Images may differ in size before, and have one size afterwards.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from jaxdistill.core.errors import ConfigError, WeightsError, as_weights_error
from jaxdistill.core.hub_files import checkpoint_path, read_json
from jaxdistill.core.registry import transforms
from jaxdistill.core.spec import Spec, parse
from jaxdistill.data.stream import Batch, Transform

Sides = tuple[int, int]  # height and width
FILTERS = {resampling.name.lower(): resampling for resampling in Image.Resampling}
HALF = (0.5, 0.5, 0.5)
CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
# Defaults of transformers' image processors: common to all, and by processor class, for the model families we have.
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
BY_SHORTER_EDGE = ("Bit", "CLIP", "ConvNext", "Siglip")  # a single number as size means the shorter edge; else a square
BY_MODEL = {"clip": "CLIP", "deit": "DeiT", "resnet": "ConvNext", "siglip": "Siglip", "vit": "ViT"}
BY_MODEL |= dict.fromkeys(("dinov2", "dinov2_with_registers"), "Bit")


class Recipe(NamedTuple):
    """The preprocessing of images for a network: resize, crop and normalise.

    resize: the new length of the shorter edge, which keeps the proportions; or the new height and width; None for no
        resizing
    crop: height and width of the centre crop, for which a smaller image is padded with zeros; None for no cropping
    scale, mean, std: a pixel value x becomes `(scale * x - mean) / std`; mean and std have one value, or one per
        channel
    filter: interpolation filter of the resizing
    """

    resize: int | Sides | None
    crop: Sides | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: Image.Resampling


LARGEST_SIDE = 2**14  # pixels; an RGB image of this size takes 768 MiB


@transforms.register
def resize(size: int, filter: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic") -> Transform:
    """Resize each image so that its shorter edge has `size` pixels, and crop the square in the centre.

    Args:
        size: height and width of the result in pixels.
        filter: interpolation filter of resizing.

    Raises:
        ValueError: `size` is not positive, or too large.
    """
    if not 1 <= size <= LARGEST_SIDE:
        raise ValueError(f"size {size}; give 1 to {LARGEST_SIDE}.")

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        crop = lambda image: _cropped(_resized(image, size, FILTERS[filter]), (size, size))
        return batch | {"image": np.stack([crop(image) for image in _images(batch, "resize")])}

    return Transform(0, apply)


@transforms.register
def processed(source: str, size: int = 0) -> Transform:
    """Resize, crop, rescale and normalise images as the preprocessor_config.json of a checkpoint specifies.

    The results are float32 images, which the models of this library use without further scaling (uint8 images are
    mapped to -1..1). Greyscale images get three equal channels. Transforms that fill pixels with 0, such as `shift`,
    belong before `processed`, because after it 0 is no longer black.

    Args:
        source: the checkpoint: a folder in Hugging Face's format, or a hub id such as `google/vit-base-patch16-224`.
        size: new image size instead of the checkpoint's; all sizes in the checkpoint's config, such as the size before
            cropping, are scaled by the same factor. 0 means no change.

    Raises:
        WeightsError: the checkpoint or its config does not exist, or its image processor is not supported.
        ConfigError: the batch has no images, or they are not uint8.
    """
    recipe = _recipe(source, size)

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        return batch | {"image": _normalised([_shaped(image, recipe) for image in _images(batch, "processed")], recipe)}

    return Transform(0, apply, repr((*recipe[:-1], recipe.filter.value)))  # numbers: names of an enum may change


def preprocessing_specs(augment: Sequence[str]) -> tuple[str, ...]:
    """Return the spec strings of those transforms that preprocess images: `resize` and `processed`.

    Args:
        augment: spec strings of transforms, such as `resize(size=224)` and `flip`.
    """
    return tuple(spec for spec in augment if parse(spec, "data.augment").name in ("resize", "processed"))


def processor_config(augment: Sequence[str], image: tuple[int, ...], dtype: np.dtype) -> dict[str, Any] | None:
    """Return the preprocessor_config.json with which Hugging Face transformers preprocesses images as this run did.

    Args:
        augment: spec strings of the run's transforms, such as `resize(size=224)` and `flip`.
        image: height, width and channels of the network's input.
        dtype: dtype of the network's input.

    Returns:
        The content of the file; None if no image processor of transformers has the same result.
    """
    height, width, channels = image
    half = (0.5,) * channels  # our models map uint8 images to -1..1
    match [parse(spec, "data.augment") for spec in preprocessing_specs(augment)]:
        case [Spec("processed") as spec]:
            return _to_config(_recipe(*_arguments(processed, spec)), channels)
        case [Spec("resize") as spec]:
            size, filter = _arguments(resize, spec)
            return _to_config(Recipe(size, (size, size), 1 / 255, half, half, FILTERS[filter]), channels)
        case [] if dtype == np.uint8:
            return _to_config(Recipe((height, width), None, 1 / 255, half, half, FILTERS["bicubic"]), channels)
    return None


def _arguments(factory: Callable[..., Transform], spec: Spec) -> tuple[Any, ...]:
    bound = inspect.signature(factory).bind(*spec.args, **spec.kwargs)
    bound.apply_defaults()
    return bound.args


def _to_config(recipe: Recipe, channels: int) -> dict[str, Any]:
    """Convert preprocessing to the config of transformers' ViT processor, which has all steps in the same order."""
    both = lambda sides: {"height": sides[0], "width": sides[1]}
    per_channel = lambda values: values if len(values) == channels else values * channels
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
        "image_mean": per_channel(recipe.mean),
        "image_std": per_channel(recipe.std),
    }


def _recipe(source: str, size: int) -> Recipe:
    """Return the image preprocessing of a checkpoint, scaled to images of `size` pixels unless `size` is 0."""
    recipe = read_recipe(checkpoint_path(source))
    return scaled(recipe, size) if size else recipe


def read_recipe(folder: Path) -> Recipe:
    """Read the image preprocessing of a checkpoint from the config of its image processor.

    Args:
        folder: folder of the checkpoint.

    Raises:
        WeightsError: the checkpoint has no image processor, or one that is damaged or not supported.
    """
    with as_weights_error(folder):
        return _read_recipe(folder)


def _read_recipe(folder: Path) -> Recipe:
    written = _read_config(folder)
    kind = _kind(folder, written)
    config = {**COMMON, **KINDS[kind], **{name: value for name, value in written.items() if value is not None}}
    if kind == "ConvNext" and config["do_center_crop"]:
        raise WeightsError(f"{folder} crops its images twice, which is not supported; remove do_center_crop")
    edge = kind in BY_SHORTER_EDGE
    resize = _sides(folder, config["size"], edge) if config["do_resize"] else None
    crop = _sides(folder, config["crop_size"], False) if config["do_center_crop"] else None
    if kind == "ConvNext" and isinstance(resize, int):
        square = (resize, resize)
        resize, crop = (int(resize / config["crop_pct"]), square) if resize < 384 else (square, None)
    assert not isinstance(crop, int)
    normalize = config["do_normalize"]
    return Recipe(
        resize,
        crop,
        float(config["rescale_factor"]) if config["do_rescale"] else 1.0,
        _channels(config["image_mean"]) if normalize else (0.0,),
        _channels(config["image_std"]) if normalize else (1.0,),
        Image.Resampling(config["resample"]),
    )


def _read_config(folder: Path) -> Mapping[str, Any]:
    """Read the image processor's config from processor_config.json (transformers 5) or preprocessor_config.json."""
    nested = folder / "processor_config.json"
    if nested.is_file() and "image_processor" in (config := read_json(nested)):
        return config["image_processor"]
    return read_json(folder / "preprocessor_config.json")


def _kind(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the kind of a checkpoint's image processor, a key of `KINDS`."""
    processor = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    kind = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", processor)
    if not kind and (folder / "config.json").is_file():
        kind = BY_MODEL.get(read_json(folder / "config.json").get("model_type", ""), "")
    if kind not in KINDS:
        known = ", ".join(f"{name}ImageProcessor" for name in KINDS)
        raise WeightsError(f"{folder} has the image processor {processor!r}, which is not supported. Known: {known}")
    return kind


def _sides(folder: Path, size: Any, edge: bool) -> int | Sides:
    """Parse an image size of a config; a single number is the shorter edge if `edge` is true, else height and width."""
    fits = lambda *sides: all(1 <= side <= LARGEST_SIDE for side in sides)
    match size:
        case int() if fits(size):
            return size if edge else (size, size)
        case {"height": int(height), "width": int(width)} | [int(height), int(width)] if fits(height, width):
            return height, width
        case {"shortest_edge": int(shortest)} if len(size) == 1 and fits(shortest):
            return shortest
    raise WeightsError(f"{folder} has the image size {size!r}; supported are height and width, or shortest_edge")


def _channels(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),)


def scaled(recipe: Recipe, size: int) -> Recipe:
    """Scale all sizes of an image preprocessing by one factor, so that the resulting images have a given size.

    Args:
        recipe: the original preprocessing.
        size: new height of the resulting images; if the recipe only resizes the shorter edge, new length of this edge.

    Raises:
        ValueError: the recipe neither resizes nor crops images, or `size` is below 1.
    """
    old = recipe.crop or recipe.resize
    if old is None or size < 1:
        cure = "leave size out, or put resize(size=...) before it."
        raise ValueError(f"size {size}, but the image size of the checkpoint is {old}; {cure}")
    factor = size / (old if isinstance(old, int) else old[0])
    both = lambda sides: sides and (round(sides[0] * factor), round(sides[1] * factor))
    edge = recipe.resize
    return recipe._replace(resize=round(edge * factor) if isinstance(edge, int) else both(edge), crop=both(recipe.crop))


def _shaped(image: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Resize and crop one image, which stays uint8; greyscale images get the channels of the recipe."""
    if image.dtype != np.uint8:
        cure = "Put it before transforms that change the dtype"
        raise ConfigError("data.augment", f"'processed' needs uint8 images, not {image.dtype}. {cure}.")
    channels = len(recipe.mean)
    if channels > 1 and image.shape[-1] not in (1, channels):
        raise ConfigError("data.augment", f"'processed' needs {channels} channels or 1, not {image.shape[-1]}.")
    if recipe.resize is not None:
        image = _resized(image, recipe.resize, recipe.filter)
    image = _cropped(image, recipe.crop) if recipe.crop else image
    return np.broadcast_to(image, (*image.shape[:2], max(channels, image.shape[-1])))


def _normalised(images: list[np.ndarray], recipe: Recipe) -> np.ndarray:
    """Normalise and stack images, `[rows, height, width, channels]` float32.

    If the sizes of the images differ, return an object array, for which the data pipeline raises an error.
    """
    mean, std = np.array(recipe.mean, np.float32), np.array(recipe.std, np.float32)
    normalise = lambda x: (x.astype(np.float32) * np.float32(recipe.scale) - mean) / std
    if len({image.shape for image in images}) == 1:
        return normalise(np.stack(images))
    return np.fromiter(map(normalise, images), dtype=object, count=len(images))


def _resized(image: np.ndarray, size: int | Sides, filter: Image.Resampling) -> np.ndarray:
    """Resize an image `[height, width, channels]` with Pillow, as transformers does.

    Args:
        image: the image.
        size: new length of the shorter edge, or new height and width.
        filter: interpolation filter.
    """
    height, width = image.shape[:2]
    if isinstance(size, int):
        short = min(height, width)
        size = (int(size * height / short), int(size * width / short))
    if size == (height, width):
        return image
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return np.asarray(Image.fromarray(image).resize(size[::-1], filter))
    plain = image if image.dtype == np.uint8 else image.astype(np.float32)  # the only float dtype of Pillow
    channels = [np.asarray(Image.fromarray(x).resize(size[::-1], filter)) for x in np.moveaxis(plain, -1, 0)]
    return np.stack(channels, -1).astype(image.dtype)


def _cropped(image: np.ndarray, sides: Sides) -> np.ndarray:
    """Crop the centre of an image; a smaller image is padded with zeros on all sides, as in transformers."""
    missing = [max(0, side - length) for side, length in zip(sides, image.shape[:2], strict=True)]
    padded = np.pad(image, [*((-(-n // 2), n // 2) for n in missing), (0, 0)]) if any(missing) else image
    top, left = ((length - side) // 2 for length, side in zip(padded.shape[:2], sides, strict=True))
    return padded[top : top + sides[0], left : left + sides[1]]


def _images(batch: Batch, name: str) -> np.ndarray:
    """Return the images of a batch, `[rows, height, width, channels]`, or an object array `[rows]` if sizes differ."""
    image = batch.get("image")
    if image is None or np.ndim(image[0]) != 3:
        fields = ", ".join(f"{field} {list(value.shape)}" for field, value in batch.items())
        cure = "Remove the transform, or choose a data set with a field 'image'"
        problem = f"{name!r} needs image [rows, height, width, channels], not {fields}"
        raise ConfigError("data.augment", f"{problem}. {cure}.")
    return image
