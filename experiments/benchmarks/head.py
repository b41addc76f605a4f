"""Two heads and the divergence between them: python -m experiments.benchmarks.head --size gpu --torch PYTHON

Forward KL at T = 2 from a teacher's head to a student's, of unlike width, and the gradients of the student's features
and kernel, in one pass over chunks of the sequence; beside PyTorch with whole logits.
"""

import jax
import jax.numpy as jnp

from experiments.benchmarks.measured import Work, compare, told
from experiments.benchmarks.sizes import SIZES, TEMPERATURE
from jaxdistill.core import registry
from jaxdistill.core.objective import Weighted, objective
from jaxdistill.core.types import Factored, Outputs, Signals
from jaxdistill.evaluation.flops import flops


def passed(chunks: int, kernels: str = "xla"):
    """`(student, teacher) -> (loss, gradient of the student's head)`."""
    term = registry.losses.build(f"kd(temperature={TEMPERATURE})", "")
    minimised = objective({"kd": Weighted(term)}, registry.fusions["single"](), chunks, kernels)

    def loss(student: Factored, teacher: Factored) -> jax.Array:
        mask = jnp.ones(student.shape[:2])
        teachers = (Outputs(jax.lax.stop_gradient(teacher)),)
        seen = {"train": Signals(Outputs(student), teachers, None, {}, mask, jnp.zeros((), jnp.int32), 1.0, {})}
        params, state = minimised.init(jax.random.key(0), seen)
        return minimised.loss(params, state, seen, minimised.weights(0), key=jax.random.key(0))[0]

    return jax.value_and_grad(loss)


def shapes(size, kind) -> tuple[Factored, Factored]:
    """The heads of student and teacher, as shapes."""
    rows = (size["rows"], size["length"])
    look = lambda *shape: jax.ShapeDtypeStruct(shape, kind)
    return tuple(Factored(look(*rows, size[w]), look(size[w], size["vocabulary"])) for w in ("student", "teacher"))


def work(size, kind) -> Work:
    heads = shapes(size, kind)
    traced = jax.jit(passed(size["chunks"])).trace(*heads)
    compiled = traced.lower().compile()
    scaled = lambda x: 0.02 * jax.random.normal(jax.random.key(x.shape[-1]), x.shape, x.dtype)
    student, teacher = jax.tree.map(scaled, heads)
    return Work(lambda: jax.block_until_ready(compiled(student, teacher)), flops(traced.jaxpr).total, compiled)


def main() -> None:
    known = told(__doc__)
    size, kind = SIZES["head"][known.size], jnp.bfloat16 if known.size == "gpu" else jnp.float32
    compare("head", work(size, kind), known)


if __name__ == "__main__":
    main()
