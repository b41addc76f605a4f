"""Time two heads and their divergence against PyTorch: python -m experiments.benchmarks.head --size gpu --torch PYTHON

Computes the forward KL at T = 2 from a teacher's head to a student's head of another width, with the gradients of the
student's features and kernel, in one pass over chunks of the sequence. PyTorch computes whole logits.
"""

import jax
import jax.numpy as jnp

from experiments.benchmarks.measured import Work, compare, parse_arguments
from experiments.benchmarks.sizes import SIZES, TEMPERATURE
from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.types import Factored, Outputs, Signals
from jaxdistill.evaluation.flops import flops


def loss_and_gradient(chunks: int, kernels: str = "xla"):
    """Make a function `(student, teacher) -> (loss, gradient of the student's head)`."""
    term = registry.losses.build(f"kd(temperature={TEMPERATURE})", "")
    minimised = objective({"kd": WeightedTerm(term)}, registry.fusions["single"](), chunks, kernels)

    def loss(student: Factored, teacher: Factored) -> jax.Array:
        mask = jnp.ones(student.shape[:2])
        teachers = (Outputs(jax.lax.stop_gradient(teacher)),)
        signals = {"train": Signals(Outputs(student), teachers, None, {}, mask, jnp.zeros((), jnp.int32), 1.0, {})}
        params, state = minimised.init(jax.random.key(0), signals)
        return minimised.loss(params, state, signals, minimised.weights(0), key=jax.random.key(0))[0]

    return jax.value_and_grad(loss)


def shapes(size, kind) -> tuple[Factored, Factored]:
    """Return the shapes of the heads of student and teacher."""
    rows = (size["rows"], size["length"])
    array = lambda *shape: jax.ShapeDtypeStruct(shape, kind)
    return tuple(Factored(array(*rows, size[w]), array(size[w], size["vocabulary"])) for w in ("student", "teacher"))


def work(size, kind) -> Work:
    heads = shapes(size, kind)
    traced = jax.jit(loss_and_gradient(size["chunks"])).trace(*heads)
    compiled = traced.lower().compile()
    scaled = lambda x: 0.02 * jax.random.normal(jax.random.key(x.shape[-1]), x.shape, x.dtype)
    student, teacher = jax.tree.map(scaled, heads)
    return Work(lambda: jax.block_until_ready(compiled(student, teacher)), flops(traced.jaxpr).total, compiled)


def main() -> None:
    args = parse_arguments(__doc__)
    size, kind = dict(SIZES["head"][args.size]), jnp.bfloat16 if args.size == "gpu" else jnp.float32
    size["chunks"] = args.chunks or size["chunks"]
    compare("head", work(size, kind), args)


if __name__ == "__main__":
    main()
