"""Tests of the transforms `processed`, which must equal the image processors of transformers, and `resize`."""

import json
import re

import numpy as np
import pytest
import runs

import jaxdistill
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets, transforms
from jaxdistill.data import Batches, Records, evaluation_batches
from jaxdistill.data.image import processors
from jaxdistill.models.layers import pixels

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CONFIGS = {  # forms that published checkpoints used over the years, with smaller sizes to save time
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 20}, "resample": 2},
    "vit of 2021": {"feature_extractor_type": "ViTFeatureExtractor", "size": 24, "do_resize": True},
    "vit that says nothing": {"image_processor_type": "ViTImageProcessor"},
    "vit, fast": {"image_processor_type": "ViTImageProcessorFast", "size": 24, "do_rescale": False},
    "deit": {"feature_extractor_type": "DeiTFeatureExtractor", "size": 36, "crop_size": 30, "resample": 3, **IMAGENET},
    "clip of 2021": {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": 24,
        "crop_size": 24,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 27},
        "crop_size": {"height": 25, "width": 22},
    },
    "clip, larger than its image": {"image_processor_type": "CLIPImageProcessor", "size": 17, "crop_size": 28},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 24, "width": 24}, "resample": 2},
    "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 28, **IMAGENET},
    "resnet": {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "size": 26, **IMAGENET},
    "resnet, another share": {"image_processor_type": "ConvNextImageProcessor", "size": 26, "crop_pct": 0.95},
    "resnet, large": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, **IMAGENET},
    "not normalised": {"image_processor_type": "ViTImageProcessor", "size": 24, "do_normalize": False},
    "not resized": {"image_processor_type": "CLIPImageProcessor", "do_resize": False, "crop_size": 16},
}
SIZES = ((31, 47), (47, 31), (40, 40), (19, 64))


def images(sizes=SIZES, channels: int = 3, dtype: type = np.uint8) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (-(-h // 4), -(-w // 4), channels)) for h, w in sizes]
    return [x.repeat(4, 0).repeat(4, 1)[:h, :w].astype(dtype) for x, (h, w) in zip(coarse, sizes, strict=True)]


def ragged(found: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {"image": np.fromiter(found, dtype=object, count=len(found)), "label": np.arange(len(found))}


@pytest.fixture
def folder(tmp_path):
    def write(config: dict, name: str = "preprocessor_config.json"):
        (tmp_path / name).write_text(json.dumps(config))
        return tmp_path

    return write


def apply(spec: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    transform = transforms.build(spec, "data.augment")
    assert transform.draws == 0  # evaluation leaves out transforms with random draws
    return transform.apply(batch, np.zeros((len(batch["image"]), 0)))


def theirs(path, found: list[np.ndarray]) -> list[np.ndarray]:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    return [processor(x, input_data_format="channels_last")["pixel_values"][0].transpose(1, 2, 0) for x in found]


@pytest.mark.parametrize("name", CONFIGS)
def test_images_are_those_of_transformers(folder, name):
    path, found = folder(CONFIGS[name]), images()
    batch = ragged(found)
    out = apply(f"processed(source={str(path)!r})", batch)
    expected = theirs(path, found)
    for ours, wanted in zip(out["image"], expected, strict=True):
        assert ours.dtype == np.float32 and ours.shape == wanted.shape
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)
    assert out["image"].ndim == 4 and out["label"] is batch["label"] and batch["image"][0] is found[0]


def test_the_processor_of_a_whole_processor_is_found(folder):
    path = folder({"image_processor": CONFIGS["vit"]}, "processor_config.json")
    folder(CONFIGS["clip"])  # transformers also ignores this older file
    out = apply(f"processed(source={str(path)!r})", ragged(images()))["image"]
    np.testing.assert_allclose(out, np.stack(theirs(path, images())), rtol=1e-5, atol=1e-5)


def test_a_config_without_a_type_has_that_of_its_network(folder):
    folder({"model_type": "resnet"}, "config.json")
    path = folder({"size": 26, **IMAGENET})
    out = apply(f"processed(source={str(path)!r})", ragged(images()))["image"]
    folder(CONFIGS["resnet"])
    np.testing.assert_allclose(out, np.stack(theirs(path, images())), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["clip of 2021", "siglip", "resnet"])
def test_another_size_shrinks_all_sizes_alike(folder, name):
    path, config = folder(CONFIGS[name]), CONFIGS[name]
    out = apply(f"processed(source={str(path)!r}, size=12)", ragged(images()))["image"]
    halved = {"size": {"height": 12, "width": 12} if name == "siglip" else 12} | (
        {"crop_size": 12} if "crop_size" in config else {}
    )
    wanted = np.stack(theirs(folder({**config, **halved}), images()))
    assert out.shape[1:] == (12, 12, 3)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


def test_grey_images_have_three_channels_afterwards(folder):
    path, grey = folder(CONFIGS["clip of 2021"]), images(channels=1)
    out = apply(f"processed(source={str(path)!r})", ragged(grey))["image"]
    wanted = np.stack(theirs(path, [np.repeat(x, 3, -1) for x in grey]))
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


# resize


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resized_images_are_square_and_of_one_shape(channels, dtype):
    spec = "resize(size=10, filter='bilinear')"
    out = apply(spec, ragged(images(channels=channels, dtype=dtype)))["image"]
    assert out.shape == (4, 10, 10, channels) and out.dtype == dtype
    floats = apply(spec, ragged(images(channels=channels, dtype=np.float32)))["image"]
    assert np.abs(out - floats).max() <= 1  # rounding changes at most one grey level


def test_resize_keeps_the_middle_and_what_has_its_size_already():
    (wide,) = images([(8, 16)])
    out = apply("resize(size=8)", {"image": wide[None]})["image"]
    assert np.array_equal(out[0], wide[:, 4:12])
    half = apply("resize(size=4, filter='nearest')", {"image": wide[None]})["image"]
    assert np.array_equal(half[0], wide[1::2, 5:12:2])
    constant = np.full((1, 9, 9, 3), 7, np.uint8)
    assert (apply("resize(size=30, filter='lanczos')", {"image": constant})["image"] == 7).all()


# In a stream


def test_evaluation_sees_what_training_sees(folder):
    path = folder(CONFIGS["clip of 2021"])
    records = Records([{"image": image, "label": i} for i, image in enumerate(images())], 4)
    form = (transforms.build(f"processed(source={str(path)!r})", ""), transforms.build("flip", ""))
    (judged,) = evaluation_batches(records, batch_size=4, rows=slice(4), transforms=form)
    seen = Batches(records, batch_size=4, seed=0, transforms=form[:1], rows=slice(4))[0]
    order = np.argsort(seen["index"])
    assert np.array_equal(judged["image"], seen["image"][order]) and judged["image"].shape == (4, 24, 24, 3)


def varied(split: str):
    """Build 32 images of many sizes, as photographs have; those of the test split are one pixel wider."""
    sizes = [(12 + i % 5, 12 + i % 3 + (split == "test")) for i in range(32)]
    return [{"image": image, "label": i % 4} for i, image in enumerate(images(sizes))]


@pytest.fixture
def registered():
    with runs.registries_as_found():
        datasets.register(varied)
        yield


def run_config(**differences):
    return jaxdistill.make(
        **{
            "steps": 2,
            "batch_size": 8,
            "control": False,
            "student": {"model": "vit(classes=4, patch=4, width=8, depth=1, heads=2)"},
            "objective": {"cross_entropy": {}},
            "data": {"name": "varied", "augment": ("resize(size=8)", "flip()")},
            "evaluate": {"every": 2, "batch_size": 16, "layers": ()},
            "mesh": {"data": 1},
            "logging": {"tensorboard": False},
            **differences,
        }
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_handed_out_says_what_was_read(folder, name):
    path, found = folder(CONFIGS[name]), images()
    told = theirs(path, found)
    if len({image.shape for image in told}) == 1:
        augment = ("flip()", f"processed({str(path)!r})")
        config = processors.processor_config(augment, told[0].shape, np.dtype(np.float32))
        again = theirs(folder(json.loads(json.dumps(config))), found)
        np.testing.assert_allclose(np.stack(again), np.stack(told), rtol=1e-6, atol=1e-6)


@pytest.mark.sampled("processed*")
@pytest.mark.parametrize("how", ["resize(size=8, filter='bilinear')", "processed(source={!r}, size=8)"])
def test_a_run_on_images_of_many_sizes_is_handed_out_with_its_processor(registered, folder, tmp_path, how):
    """Check that transformers, with the processor that the run exports, prepares images as the run did."""
    spec = how.format(str(folder(CONFIGS["dinov2"])))
    config = run_config(data={"name": "varied", "augment": (spec, "flip()")})
    assert np.isfinite(jaxdistill.distill(config, tmp_path / "run").rows[0]["nll"])
    given = apply(spec, ragged(images()))["image"]
    seen = np.asarray(pixels(given, np.float32))
    np.testing.assert_allclose(seen, np.stack(theirs(tmp_path / "run/student/hub", images())), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ({"data": {"name": "varied"}}, "data.augment: 'image' has the shape ["),
        ({"data": {"name": "varied", "augment": ("flip()",)}}, "'flip' needs image .* with resize(size=224) before it"),
        (
            {"teachers": {"big": {"model": "mlp(widths=(8,), classes=4)", "steps": 2, "augment": ("flip()",)}}},
            "teachers.big.augment: preprocesses images by nothing, but data.augment by resize(size=8). Use the same",
        ),
        (
            {"streams": {"quiz": {"split": "train", "augment": ("resize(size=9)",)}}},
            "streams.quiz.augment: preprocesses images by resize(size=9), but data.augment by resize(size=8)",
        ),
    ],
)
def test_a_run_on_images_of_other_forms_is_refused(registered, tmp_path, differences, said):
    with pytest.raises(ConfigError) as error:
        jaxdistill.distill(run_config(**differences), tmp_path)
    assert re.search(re.escape(said).replace(r"\.\*", ".*"), str(error.value)), str(error.value)


# Mistakes


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"image_processor_type": "LayoutLMv2ImageProcessor"},
            "has the image processor 'LayoutLMv2ImageProcessor', which is not supported. Known: ",
        ),
        ({"size": 4}, "image processor '', which is not supported. Known: BitImageProcessor, CLIP"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True},
            "crops its images twice, which is not supported",
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 4, "longest_edge": 8}},
            "the image size {'shortest_edge': 4, 'longest_edge': 8}; supported are height and width, or shortest_edge",
        ),
    ],
)
def test_a_config_that_we_do_not_know_is_refused(folder, config, said):
    with pytest.raises(ConfigError) as error:
        transforms.build(f"processed(source={str(folder(config))!r})", "data.augment")
    assert str(error.value).startswith("data.augment: processed: ") and said in str(error.value)


def test_mistakes_are_told_with_their_cure(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.augment: processed: .*preprocessor_config\.json is missing"):
        transforms.build(f"processed(source={str(tmp_path)!r})", "data.augment")
    with pytest.raises(ConfigError, match=r"data\.augment: resize: size 0; give 1 to 16384"):
        transforms.build("resize(size=0)", "data.augment")
    path = folder(CONFIGS["vit"])
    spec = f"processed(source={str(path)!r})"
    with pytest.raises(ConfigError, match=r"'processed' needs uint8 images, not float32. Put it before transforms"):
        apply(spec, {"image": np.zeros((2, 4, 4, 3), np.float32)})
    with pytest.raises(ConfigError, match=r"'processed' needs 3 channels or 1, not 4"):
        apply(spec, {"image": np.zeros((2, 4, 4, 4), np.uint8)})
    with pytest.raises(ConfigError, match=r"'resize' needs image \[rows, height, width, channels\], not label \[2\]"):
        transforms.build("resize(size=4)", "").apply({"label": np.arange(2)}, np.zeros((2, 0)))
    asis = folder({"image_processor_type": "ViTImageProcessor", "do_resize": False})
    refused = r"size 9, but the image size of the checkpoint is None; leave size out, or put resize"
    with pytest.raises(ConfigError, match=refused):
        transforms.build(f"processed(source={str(asis)!r}, size=9)", "")
