"""The outputs of a trained model for some records."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxdistill.export.model_folder import About


class Predictions(NamedTuple):
    """The outputs of a model for some records; a field is None if the model has no such output.

    predicted: number of the most likely class of each record, `[records]`
    labels: its name, or its number as a text if the classes have no names, `[records]`
    probabilities: probability of each class, `[records, classes]` float32
    confidence: probability of the most likely class, `[records]` float32
    embeddings: the embedding of each record, `[records, width]`; for a model with two towers, that of the image
    text_embeddings: the embedding of each record's text, `[records, width]`; only for a model with two towers
    scale: factor of the cosine similarities of image and text, `[records]`; only for a model with two towers
    nll: mean negative log-likelihood of the tokens of each text, in nats, `[records]`; only for a language model
    """

    predicted: np.ndarray | None = None
    labels: list[str] | None = None
    probabilities: np.ndarray | None = None
    confidence: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    text_embeddings: np.ndarray | None = None
    scale: np.ndarray | None = None
    nll: np.ndarray | None = None


@runtime_checkable
class RecordPredictor(Protocol):
    """The type of a trained model that is ready for use: a `Predictor`, or a `ZeroShotClassifier` made from one."""

    @property
    def about(self) -> About: ...  # noqa: D102
    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def text_fields(self) -> tuple[str, ...]: ...  # noqa: D102

    def predict(
        self, records: Sequence[Any] | np.ndarray, batch_size: int | None = None, first: int = 0
    ) -> Predictions:
        """Predict the classes of records, or compute their embeddings; `first` is the number of the first record."""
