"""Classify images by texts that name the classes, without examples of the classes (zero-shot classification).

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021 (arxiv.org/abs/2103.00020).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdistill.core.errors import ConfigError
from jaxdistill.export.predictions import Predictions, RecordPredictor

PLACE = "{}"  # stands for the name of a class in a template
SAME = 2e-6  # greatest squared distance of two vectors of the same tokens


class ZeroShotClassifier:
    """A model of images and texts that is used as a classifier, whose classes are texts.

        p(class | image) = softmax(scale * cos(image embedding, class vector))

    The vector of a class is the mean of the embeddings of its texts, one for each template, each of unit norm. The
    classifier has the methods and properties of a `Predictor` that files of images need.

    Args:
        predictor: a trained model with two towers, such as `jaxdistill.load("runs/pairs")`.
        classes: names of the classes, in order, such as ("cat", "dog").
        templates: texts in which `{}` stands for the name of a class, such as "a picture of a {}".

    Raises:
        ConfigError: the model does not read images and one text; there are fewer than two classes, or an empty or
            repeated one, or two that the model cannot tell apart; or a template lacks `{}`.
    """

    def __init__(self, predictor: RecordPredictor, classes: Sequence[str], templates: Sequence[str] = (PLACE,)):
        check_classes(classes, templates)
        self._predictor, self.class_names = predictor, tuple(classes)
        about = predictor.about
        if len(predictor.text_fields) != 1 or "image" not in about.inputs:
            problem = "classes are texts, which only a model of images and texts can compare with an image"
            raise ConfigError("--classes", f"{problem}. Choose a run with two towers, or leave it out.")
        texts = [template.replace(PLACE, name) for name in self.class_names for template in templates]
        (self._field,), (shape, dtype) = predictor.text_fields, about.inputs["image"]
        blank = np.zeros(shape, np.uint8 if about.transforms else dtype)  # as it is before the transforms
        outputs = predictor.predict([{self._field: text, "image": blank} for text in texts])
        if outputs.text_embeddings is None or outputs.scale is None:
            problem = "the model has no text tower, or no scale of its cosines"
            raise ConfigError("--classes", f"{problem}. Choose a run with towers(...), clip(...) or siglip(...).")
        units = _unit(outputs.text_embeddings).reshape(len(self.class_names), len(templates), -1)
        self._vectors = _unit(units.mean(1))  # [classes, width]
        check_distinct(self.class_names, self._vectors)
        self.about = about._replace(texts=[], columns={k: v for k, v in about.columns.items() if k == "image"})

    @property
    def text_fields(self) -> tuple[str, ...]:
        """Return the fields of a record that hold texts: none, since the texts are those of the classes."""
        return ()

    def predict(
        self, records: Sequence[Any] | np.ndarray, batch_size: int | None = None, first: int = 0
    ) -> Predictions:
        """Predict the class of each image.

        Args:
            records: image arrays `[height, width, channels]`, paths of image files, or dicts with the field `image`.
            batch_size: rows of a batch, see `Predictor.predict`.
            first: number of the first record, for error messages.

        Raises:
            ConfigError: a record has no image, or a wrong one; the message says which.
        """
        if isinstance(records, str | bytes | Mapping):
            raise ConfigError("records", f"a {type(records).__name__} is one record; give a list, such as [record].")
        image = lambda record: record if isinstance(record, Mapping) else {"image": record}
        rows = [{**image(record), self._field: ""} for record in records]
        outputs = self._predictor.predict(rows, batch_size, first)
        assert outputs.embeddings is not None and outputs.scale is not None  # it has two towers
        logits = outputs.scale[:, None] * (_unit(outputs.embeddings) @ self._vectors.T)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
        predicted = logits.argmax(1)
        return Predictions(
            predicted=predicted,
            labels=[self.class_names[number] for number in predicted],
            probabilities=probabilities,
            confidence=probabilities.max(1),
            embeddings=outputs.embeddings,
        )


def check_classes(classes: Sequence[str], templates: Sequence[str]) -> None:
    """Require that texts can name classes: two or more, all different, and templates with a place for the name.

    Raises:
        ConfigError: one of these does not hold; the message names the option of the command.
    """
    if not isinstance(classes, Sequence) or isinstance(classes, str) or len(classes) < 2:
        named = ", ".join(map(repr, classes)) if isinstance(classes, list | tuple) else repr(classes)
        raise ConfigError("--classes", f"{named or 'nothing'}: give the names of two classes or more.")
    if empty := [name for name in classes if not isinstance(name, str) or not name.strip()]:
        raise ConfigError("--classes", f"{empty[0]!r} names no class. Give a text for each class.")
    if twice := next((name for name in classes if list(classes).count(name) > 1), ""):
        raise ConfigError("--classes", f"contains {twice!r} twice. Give each class once.")
    if isinstance(templates, str) or not templates:
        raise ConfigError("--template", "is missing. Give at least one text with {} for the name of a class.")
    if without := [template for template in templates if PLACE not in template]:
        raise ConfigError("--template", f"{without[0]!r} has no {{}} for the name of a class. Add it.")


def check_distinct(classes: Sequence[str], vectors: Float[np.ndarray, "classes width"]) -> None:
    """Require that the vectors of the classes differ.

    Two are the same if the tokenizer does not know the words in which the names differ, or cuts them off.

    Raises:
        ConfigError: two classes have the same vector; the message names them.
    """
    exact = vectors.astype(np.float64)
    for number, vector in enumerate(exact):
        same = np.square(exact[:number] - vector).sum(1) < SAME
        if same.any():
            problem = f"{classes[int(same.argmax())]!r} and {classes[number]!r} have one embedding"
            cure = "Use words that the tokenizer knows, a shorter --template that cuts no name off, or a trained model"
            raise ConfigError("--classes", f"{problem}. {cure}.")


def _unit(x: Float[np.ndarray, "*rows width"]) -> Float[np.ndarray, "*rows width"]:
    """Scale vectors to unit norm; a zero vector stays zero."""
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norms == 0, 1, norms)
