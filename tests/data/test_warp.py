"""Tests of the transform `warp`: rotation, shift, scale and shear by hand, and the dtype of the images."""

import math

import numpy as np
import pytest

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import transforms

STILL = 0.5  # a random number that changes nothing
NEAR_ONE = 1 - 2.0**-53


def warped(spec, image, *uniforms):
    image = np.asarray(image)[None, :, :, None]
    draws = np.array([[*uniforms, *[STILL] * (5 - len(uniforms))]])
    return transforms.build(spec, "").apply({"image": image}, draws)["image"][0, :, :, 0]


def drawn(size=6, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, (size, size)).astype(dtype)


def test_the_middle_of_all_random_numbers_changes_nothing():
    for dtype in (np.uint8, np.float32):
        image = drawn(dtype=dtype)
        found = warped("warp()", image)
        assert found.dtype == dtype and np.array_equal(found, image)


def test_a_quarter_turn():
    image = drawn()
    assert np.array_equal(warped(f"warp(rotation={math.pi / 2})", image, NEAR_ONE), np.rot90(image))
    assert np.array_equal(warped(f"warp(rotation={math.pi / 2})", image, 0.0), np.rot90(image, -1))


def test_a_shift_of_one_pixel_and_a_half():
    image = drawn().astype(np.float32)
    down = warped(f"warp(shift={1 / 6})", image, STILL, STILL, STILL, NEAR_ONE)
    np.testing.assert_allclose(down[1:], image[:-1], rtol=1e-5)
    assert not down[0].any()  # pixels from outside are 0
    left = warped(f"warp(shift={1.5 / 6})", image, STILL, STILL, STILL, STILL, 0.0)
    np.testing.assert_allclose(left[:, :4], (image[:, 1:5] + image[:, 2:]) / 2, rtol=1e-5)


def test_the_scale_is_about_the_centre():
    image = np.zeros((5, 5), np.float32)
    image[2, 2] = image[1, 2] = 1.0
    larger = warped(f"warp(scale={math.log(2)})", image, STILL, NEAR_ONE)
    np.testing.assert_allclose(larger[:, 2], [1.0, 1.0, 1.0, 0.5, 0.0], atol=1e-6)  # the upper pixel is now at row 0
    smaller = warped(f"warp(scale={math.log(2)})", image, STILL, 0.0)
    assert smaller.sum() < image.sum() < larger.sum()


def test_shear_moves_rows_against_each_other():
    image = np.zeros((5, 5), np.float32)
    image[:, 2] = 1.0
    found = warped("warp(shear=1.0)", image, STILL, STILL, NEAR_ONE)
    np.testing.assert_allclose(found, np.fliplr(np.eye(5)), atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 8), (8, 4)])
def test_height_and_width_may_differ(shape):
    image = np.random.default_rng(0).random(shape).astype(np.float32) + 1
    np.testing.assert_array_equal(warped("warp()", image), image)
    down = warped(f"warp(shift={1 / shape[0]})", image, STILL, STILL, STILL, NEAR_ONE)
    np.testing.assert_allclose(down[1:], image[:-1], rtol=1e-4)
    right = warped(f"warp(shift={1 / shape[1]})", image, STILL, STILL, STILL, STILL, NEAR_ONE)
    np.testing.assert_allclose(right[:, 1:], image[:, :-1], rtol=1e-4)


def test_pixels_of_whole_numbers_are_rounded():
    image = np.tile(np.array([0, 255, 255, 255], np.uint8), (4, 1))
    shifted = warped("warp(shift=0.125)", image, STILL, STILL, STILL, STILL, NEAR_ONE)
    assert shifted[:, 1].tolist() == [128] * 4  # 127.5 is rounded to the even number, and not cut off


def test_an_image_is_rotated_before_it_is_sheared():
    image = np.zeros((5, 5), np.float32)
    image[2] = 1.0  # a line, which the quarter turn makes upright, and the shear then a diagonal
    turned = warped(f"warp(rotation={math.pi / 2}, shear=1.0)", image, NEAR_ONE, STILL, NEAR_ONE)
    np.testing.assert_allclose(turned, np.fliplr(np.eye(5)), atol=1e-6)


def test_each_image_has_its_own_warp():
    image = drawn(8)
    batch = {"image": np.stack([image] * 50)[..., None], "label": np.arange(50)}
    found = transforms.build("warp()", "").apply(batch, np.random.default_rng(0).random((50, 5)))
    assert len({each.tobytes() for each in found["image"]}) == 50 and np.array_equal(found["label"], batch["label"])
    assert found["image"].shape == batch["image"].shape and found["image"].dtype == np.uint8


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"data\.augment: warp: shear=-1.0; give a number from 0 to 10.0"):
        transforms.build("warp(shear=-1.0)", "data.augment")
    with pytest.raises(ConfigError, match=r"scale=800.0; give a number from 0 to 3.0"):
        transforms.build("warp(scale=800.0)", "data.augment")  # exp(800) is infinite
    with pytest.raises(ConfigError, match="'warp' needs image"):
        transforms.build("warp()", "").apply({"text": np.zeros((2, 3))}, np.zeros((2, 5)))
