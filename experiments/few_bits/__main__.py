"""Study weights in 8, 4 and 2 bits: python -m experiments.few_bits [--workdir DIR] [--seeds 5]

A perceptron that was trained in floats is rounded after its training, or trained further on the grid: with labels, or
with its own answers in floats as its teacher, at temperatures 1 and 4. The broken twins pass no gradient to weights
that are rounded, or give each output its neighbour's scale. A run that was stopped resumes.
"""

import jax
import jax.numpy as jnp

from jaxdistill.compress.aware import Quantizer, Settings, aware, quantizer
from jaxdistill.compress.grids import Rounded, grid
from jaxdistill.core.registry import quantizers
from jaxdistill.evaluation.report.study import ACCURACY
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ, make
from jaxdistill.run.study import Study

MODEL = "mlp(widths=(128,), classes=10)"
FLOATS = {"teachers": {"floats": {"model": MODEL}}, "student": {"model": "cut(teacher='floats')"}}


@quantizers.register
def blocked(weights: int) -> Quantizer:
    """Round weights as `aware` does, but pass no gradient to them: a broken twin."""
    whole = aware(weights)

    def wrap(model, calls):
        rounded = whole.wrap(model, calls)

        def apply(params, state, batch, *, train, key):
            stopped = {name: jax.lax.stop_gradient(x) if x.ndim > 1 else x for name, x in params.items()}
            return rounded.apply(stopped, state, batch, train=train, key=key)

        return rounded._replace(apply=apply)

    return whole._replace(wrap=wrap)


@quantizers.register
def shuffled(weights: int) -> Quantizer:
    """Round weights as `aware` does, but with the scale of the neighbouring output: a broken twin."""

    def rolled(rows) -> Rounded:
        rounded = grid(weights, 0)(rows)
        return rounded._replace(scales=jnp.roll(rounded.scales, 1, axis=-3))

    return quantizer(Settings(rolled, 0, 8, False, False, 0.0, ""))


def rounded(spec: str, temperature: float = 0.0, **changes):
    """Return the changes for a student on a grid; a temperature above 0: it learns from its own answers in floats."""
    loss = {"kd": {"term": f"kd(temperature={temperature})"}} if temperature else {"cross_entropy": {}}
    student = {**FLOATS["student"], "quantized": spec}
    return {**FLOATS, "student": student, "objective": loss, **changes}


def arms(bits: int):
    """Return the ways to a student of some bits."""
    spec = f"aware(weights={bits})"
    return {
        f"{bits} bits, rounded afterwards": rounded(spec, steps=1, rate="0.0"),
        f"{bits} bits, labels": rounded(spec),
        f"{bits} bits, its own floats": rounded(spec, 1.0),
        f"{bits} bits, its own floats, temperature 4": rounded(spec, 4.0),
    }


BASE = make(
    title="Few bits: digits",
    steps=2000,
    student={"model": MODEL},
    objective={"cross_entropy": {}},
    control=False,
    optimizer="adamw(weight_decay=0.0001)",
    rate="cosine(start=0.001)",
    data={"name": "mnist5k"},
    evaluate={"every": 2000, "layers": ()},
    logging={"tensorboard": False, "every": 100},
    mesh={"data": 1},
)
ARMS = {
    "floats": {**FLOATS, "steps": 1, "rate": "0.0"},
    **arms(8),
    **arms(4),
    **arms(2),
    "2 bits, its own floats, learned scales": rounded("aware(weights=2, scales='learned')", 1.0),
    "2 bits, no gradient (twin)": rounded("blocked(weights=2)", 1.0),
    "2 bits, scales shuffled (twin)": rounded("shuffled(weights=2)", 1.0),
}

STUDY = Study(
    name="few_bits",
    question="What do 8, 4 and 2 bits cost a perceptron, and what does training on their grid give back?",
    base=BASE,
    axes={"arm": ARMS},
    baseline="floats",
    teachers={"floats": differ(BASE, seed=100, rate="cosine(start=0.003)")},
    measures=(ACCURACY._replace(digits=1),),
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
