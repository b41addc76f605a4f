"""The data pipeline: data sets, batches, transforms, texts and images.

Grain and TensorFlow Datasets are imported on first use, so that importing this package is fast.
"""

from jaxdistill.data import selection
from jaxdistill.data.datasets import check_name, open_records
from jaxdistill.data.describe import Description, describe_split
from jaxdistill.data.image import images, processors, warp
from jaxdistill.data.records import Records
from jaxdistill.data.stream import Batch, Batches, Transform, evaluation_batches, train_stream
from jaxdistill.data.table import dataset
from jaxdistill.data.text import aligned, documents, synthesis, tokens, words

__all__ = [
    "Batch",
    "Batches",
    "Description",
    "Records",
    "Transform",
    "aligned",
    "check_name",
    "dataset",
    "describe_split",
    "documents",
    "evaluation_batches",
    "images",
    "open_records",
    "processors",
    "selection",
    "synthesis",
    "tokens",
    "train_stream",
    "warp",
    "words",
]
