"""Tests of data sets with images of several sizes, which a transform resizes."""

import numpy as np
import pytest
import runs

from jaxdistill.core.registry import datasets
from jaxdistill.main import run as run_command


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_several_sizes_in_one_split_are_resized(split, tmp_path):
    """Check that a config that resizes images is accepted although images of a split differ in size."""

    mixed = split

    def several(split: str) -> list[dict]:
        sizes = [8, 9] if split == mixed else [8]
        return [{"image": np.zeros((sizes[n % len(sizes)], 8, 1), np.uint8), "label": n % 2} for n in range(64)]

    with runs.registries_as_found():
        datasets.register(several)
        resized = "augment=('resize(size=8)',)"
        words = [
            "--config.data.name=several",
            f"--config.data.{resized}",
            f"--config.teachers.big.{resized}",
            "--check",
        ]
        assert run_command(["train", "--config", str(runs.TINY), *words]) == 0
