"""What a run keeps of a trained model beside its weights: the content of result.json."""

import math
from collections.abc import Mapping
from typing import Any

from jaxdistill.core import seal
from jaxdistill.evaluation.evaluator import ANSWERS, reliability, scores
from jaxdistill.run.train import Trained

RESULT_TYPES: seal.JsonTypes = {
    "row": dict,
    "reliability": dict,
    "seconds": (int, float),
    "compiled": dict,
    "step": int,
}  # keys of result.json


def outcome_of(name: str, cost: Mapping[str, Any], trained: Trained) -> dict[str, Any]:
    """Return the content of result.json for one model: its table row, reliability diagram and training time.

    Args:
        name: name of the model in the result table.
        cost: number of parameters, bytes, FLOPs and latency of the model.
        trained: the trained model, the metrics of its evaluation and the training time.
    """
    return {
        "row": {"name": name, **_nested(scores(trained.total)), **cost},
        "reliability": reliability(trained.total),
        "answers": _answers(trained.total),
        "seconds": trained.seconds,
        "compiled": trained.compiled,
        "log": trained.log,
    }


def _nested(scores: Mapping[str, float]) -> dict[str, Any]:
    """Turn `cka/1:2` into `cka: {"1:2": ...}`, as the report expects; a score that is not finite becomes None."""
    finite = {name: value if math.isfinite(value) else None for name, value in scores.items()}
    plain = {name: value for name, value in finite.items() if "/" not in name}
    return {**plain, "cka": {name.removeprefix("cka/"): v for name, v in finite.items() if name.startswith("cka/")}}


def _answers(total: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the predictions for the test records as lists; empty: the model predicts no class for a record."""
    return {name: values.tolist() for name, values in total[ANSWERS].values.items()} if ANSWERS in total else {}
