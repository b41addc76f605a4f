"""Records become batches: data sets, streams, transforms, text and images.

Light: Grain and TensorFlow Datasets are imported when they are used.
"""

from jaxdistill.data import selection
from jaxdistill.data.datasets import known, open_records
from jaxdistill.data.describe import Description, describe
from jaxdistill.data.image import images, processors
from jaxdistill.data.records import Records
from jaxdistill.data.stream import Batch, Batches, Transform, evaluation_batches, train_stream
from jaxdistill.data.text import aligned, synthesis, tokens, words

__all__ = [
    "Batch",
    "Batches",
    "Description",
    "Records",
    "Transform",
    "aligned",
    "describe",
    "evaluation_batches",
    "images",
    "known",
    "open_records",
    "processors",
    "selection",
    "synthesis",
    "tokens",
    "train_stream",
    "words",
]
