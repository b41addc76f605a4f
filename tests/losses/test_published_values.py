"""Tests of losses against published code, in value and gradient, through the objective of a config.

`golden/losses.npz`, `logits.npz` and `relations.npz` hold the values of the published code, in float64 and with the
reduction of its source. Each case below is the spec with which a config gets the same number, to 1e-12 in float64 and
to 1e-5 in float32: the spec's weights, order of arguments, temperature with or without T^2, and reduction are tested.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals
from checks import assert_close
from spans import term_of
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.interfaces import Term
from jaxdistill.core.objective import Reduction, WeightedTerm, objective
from jaxdistill.core.types import Outputs, Signals, TokenSpans
from jaxdistill.core.vocabulary import SharedVocabulary

KEY = jax.random.key(0)
FOLDER = Path(__file__).parents[1] / "golden"
FILES = {name: np.load(FOLDER / f"{name}.npz") for name in ("losses", "logits", "relations")}


class Published(NamedTuple):
    """The spec with which a config computes a published value, and the kind of inputs, such as logits or embeddings."""

    file: str
    spec: str
    inputs: str = "logits"
    reduction: Reduction = "token"
    factor: float = 1.0  # turns our mean over layers or pairs into the source's reduction


CASES = {
    "kd_T2": Published("losses", "kd(temperature=2.0)"),
    "kd_T4": Published("losses", "kd"),
    "dkd_a1_b8_T4": Published("losses", "dkd(alpha=1.0, beta=8.0, temperature=4.0)"),
    "dist_b1_g2": Published("losses", "dist(beta=1.0, gamma=2.0)"),
    "jsd_b0_T1.5_no_T2": Published("losses", "jsd(beta=0.0, temperature=1.5, scale_t2=False)"),
    "jsd_b0.5_T1.5_no_T2": Published("losses", "jsd(beta=0.5, temperature=1.5, scale_t2=False)"),
    "jsd_b1_T1.5_no_T2": Published("losses", "jsd(beta=1.0, temperature=1.5, scale_t2=False)"),
    "attention_transfer": Published("losses", "attention_transfer(layers=((1, 1),))", "maps"),
    "rkd_25_50": Published("losses", "rkd(distance=25.0, angle=50.0)", "embeddings"),
    "similarity": Published("losses", "similarity", "embeddings"),
    "pkt": Published("losses", "pkt", "embeddings"),
    "cc": Published("relations", "cc(gamma=0.4, order=2)", "embeddings"),
    "reverse_kl": Published("logits", "reverse_kl"),
    "skewed_forward_kl": Published("logits", "skew_kl(alpha=0.1, version='v1')"),
    "skewed_forward_kl_2": Published("logits", "skew_kl(alpha=0.1)"),
    "skewed_reverse_kl": Published("logits", "skew_reverse_kl(alpha=0.1)"),
    "skewed_reverse_kl_2": Published("logits", "skew_reverse_kl(alpha=0.2, version='v2')"),
    "standardized_kd": Published("logits", "standardized(loss=kd(temperature=2.0))"),
    "standardized_dkd": Published("logits", "standardized(loss=dkd(beta=8.0, temperature=2.0))"),
    "uld": Published("logits", "uld", "rolled logits", "text"),
    "gold_merged": Published("logits", "uld(temperature=1.5)", "spans", "text"),
    "gold_shared": Published("logits", "gold", "spans", "text"),
}
# numbers of the spans of student and teacher tokens: spans with the same number end together
SPANS = {
    "gold_merged": ([[1, 2, 3, 3, 4, 0]], [[1, 1, 2, 3, 3, 4, 0]]),
    "gold_shared": ([[1, 2, 3, 4, 0]], [[1, 2, 3, 4, 0]]),
}


def said(case: str) -> dict[str, np.ndarray]:
    """Return inputs, value and gradient of the published code."""
    file = FILES[CASES[case].file]
    return {key.removeprefix(f"{case}/"): file[key] for key in file if key.startswith(f"{case}/")}


def seeing(case: str, student: Any, known: Mapping[str, Any], precision: str) -> Signals:
    """Build the signals in which a config's term finds the inputs of the published code."""
    inputs, teacher = CASES[case].inputs, jnp.asarray(known["teacher"], precision)
    rows = student.shape[0]
    outputs: Any = {
        "embeddings": lambda x: Outputs(jnp.zeros((rows, 2)), embedding=x),
        "maps": lambda x: Outputs(jnp.zeros((rows, 2)), (x, jnp.moveaxis(x, 1, -1))),
    }.get(inputs, Outputs)
    label = known.get("label", known.get("labels"))
    mask = jnp.ones(student.shape[:-1] if "logits" in inputs else rows, precision)
    batch: dict[str, Any] = {}
    if label is not None:
        counts = np.asarray(label) != -100
        if inputs == "rolled logits":  # a position counts if the token that it predicts does
            counts = np.roll(counts, -1, axis=1)
        mask, batch = jnp.asarray(counts, precision), {"label": jnp.asarray(np.where(counts, label, 0), jnp.int32)}
    seen_teacher = outputs(teacher)
    if inputs == "spans":
        numbers = SPANS[case]
        labels = [jnp.roll(jnp.asarray(known[f"{whose}_ids"]), -1, axis=1) for whose in ("student", "teacher")]
        batch, mask = {"span": jnp.asarray(numbers[0]), "label": labels[0]}, jnp.ones(student.shape[:-1], precision)
        seen_teacher = replace(seen_teacher, spans=TokenSpans(jnp.asarray(numbers[1]), labels[1]))
    base = replace(signals(), temperature=jnp.ones((), precision), params={"student": {}, "teachers": ({},)})
    return replace(base, student=outputs(student), teachers=(seen_teacher,), teacher=None, batch=batch, mask=mask)


def term_as_configured(case: str, known: Mapping[str, Any]) -> Term:
    if case != "gold_shared":
        return build_loss(CASES[case].spec)
    shared = SharedVocabulary(*known["shared"].T)  # a config gets it from the tokenizers of its data
    weights = {"shared_weight": 0.7, "rest_weight": 0.4, "temperature": 1.5, "scale_t2": False}
    return term_of("gold", beta=0.5, vocabulary=shared, **weights)


def value_and_gradient(case: str, precision: str, term: Term | None = None) -> tuple[Any, Any]:
    """Return value and gradient of a config's objective for the inputs of the published code."""
    known, published = said(case), CASES[case]
    with jax.enable_x64(precision == "float64"):
        weighted = WeightedTerm(term or term_as_configured(case, known), published.factor, published.reduction)
        minimised = objective({"term": weighted}, registry.fusions.build("single", ""))

        def loss(student):
            seen = {"train": seeing(case, student, known, precision)}
            params, state = minimised.init(KEY, seen)
            return minimised.total(minimised.apply(params, state, seen, key=KEY)[0], 0)

        found = jax.jit(jax.value_and_grad(loss))(jnp.asarray(known["student"], precision))
        assert {x.dtype.name for x in found} == {precision}
        return jax.device_get(found)


def apart(case: str, found: tuple[Any, Any]) -> float:
    """Return the largest difference from the published value and gradient, relative to the largest number or to 1."""
    known = said(case)
    pairs = zip(found, (known["value"], known["grad"]), strict=True)
    return max(float(np.abs(np.asarray(a, np.float64) - b).max() / max(1.0, np.abs(b).max())) for a, b in pairs)


@pytest.mark.sampled("*float64")
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_a_configured_loss_equals_the_published_code_in_value_and_gradient(case, precision):
    assert apart(case, value_and_gradient(case, precision)) <= (1e-12 if precision == "float64" else 1e-5)


# (case, a spec with one mistake): the comparison must tell these from the published values
TWINS = [
    ("kd_T2", "kd(temperature=2.0, scale_t2=False)"),
    ("kd_T4", "kd(temperature=3.9)"),
    ("dkd_a1_b8_T4", "dkd(alpha=8.0, beta=1.0, temperature=4.0)"),
    ("dist_b1_g2", "dist(beta=2.0, gamma=1.0)"),
    ("jsd_b0_T1.5_no_T2", "jsd(beta=1.0, temperature=1.5, scale_t2=False)"),
    ("rkd_25_50", "rkd(distance=50.0, angle=25.0)"),
    ("cc", "cc(gamma=0.4, order=3)"),
    ("reverse_kl", "kd(temperature=1.0)"),
    ("skewed_forward_kl", "skew_kl(alpha=0.1, version='v2')"),
    ("skewed_reverse_kl_2", "skew_reverse_kl(alpha=0.2, version='v1')"),
    ("standardized_kd", "kd(temperature=2.0)"),
]


@pytest.mark.parametrize(("case", "spec"), TWINS)
def test_a_wrong_argument_is_not_what_was_published(case, spec):
    assert apart(case, value_and_gradient(case, "float64", build_loss(spec))) > 1e-4


def test_the_skew_kl_is_that_of_the_published_code_in_its_own_float32():
    """Check float32, to which the published code converts all inputs; the labels are those of the `jsd` cases."""
    keys = ("student", "teacher", "value", "grad")
    known = {key: FILES["losses"][f"skew_fkl_a0.1_plus_teacher_entropy/{key}"] for key in keys}
    labels = FILES["losses"]["jsd_b0_T1.5_no_T2/labels"]
    minimised = objective(
        {"term": WeightedTerm(build_loss("skew_kl(version='v1')"))}, registry.fusions.build("single", "")
    )

    def loss(student):
        seen = {"train": seeing("skewed_forward_kl", student, known | {"labels": labels}, "float32")}
        params, state = minimised.init(KEY, seen)
        return minimised.total(minimised.apply(params, state, seen, key=KEY)[0], 0)

    found = jax.jit(jax.value_and_grad(loss))(jnp.asarray(known["student"], jnp.float32))
    assert_close(found, (known["value"], known["grad"]), rtol=1e-6, atol=1e-6)
