"""Choose test records that only the student or only the control predicts correctly, as examples for the report."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.data.pipeline import Pipeline

EACH = 6  # examples that only the student predicts correctly, and as many that only the control does
PIXELS, CHARACTERS = 96, 240  # longest side of an image, and length of a text


def differing(data: Pipeline, answers: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """Return test records that only the student or only the control predicts correctly, with all predictions.

    The control is the same student trained without a teacher.

    Args:
        data: data pipeline of the run.
        answers: predictions for the test records, by model name.

    Returns:
        `{"record": number, "label": class, "predicted": {model: class}, "text" or "image": content}` for each record,
        where an image is a PNG file in base64. There are at most six records of each kind. The list is empty if
        labels, or predictions of the student or the control, are missing, or if there is no such record.
    """
    student, control = (np.asarray(answers.get(name, {}).get("predicted", ())) for name in ("student", "control"))
    labels = np.asarray(answers.get("student", {}).get("label", ()))
    if not (len(labels) and len(student) == len(control) == len(labels)):
        return []
    right, other = student == labels, control == labels
    numbers = [*np.flatnonzero(right & ~other)[:EACH].tolist(), *np.flatnonzero(other & ~right)[:EACH].tolist()]
    if not numbers:
        return []
    try:
        records = data.open(data.test, tokens=False).take(np.asarray(numbers))
    except (ConfigError, DamageError):  # the raw records are gone, such as behind a cache of tokens
        records = {}
    previews = [_preview({field: column[place] for field, column in records.items()}) for place in range(len(numbers))]
    predicted = {name: of_model["predicted"] for name, of_model in answers.items() if of_model.get("predicted")}
    return [
        {"record": number, "label": int(labels[number]), **look}
        | {"predicted": {name: values[number] for name, values in predicted.items()}}
        for number, look in zip(numbers, previews, strict=True)
    ]


def _preview(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a preview of a record for the report: its image (a small PNG file in base64), or else its texts.

    The result is `{"image": content}` or `{"text": content}`, or an empty dict if the record has neither.
    """
    image = record.get("image")
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[-1] in (1, 3):
        return {"image": _png(image)}
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in record.values()]
    text = " / ".join(value for value in texts if isinstance(value, str))
    return {"text": text[:CHARACTERS] + ("…" if len(text) > CHARACTERS else "")} if text else {}


def _png(image: np.ndarray) -> str:
    from PIL import Image

    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = ((image - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((PIXELS, PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
