"""Universal logit distillation: probabilities compared by rank, whatever tokens they belong to.

Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs, 2024
(arxiv.org/abs/2402.12030).

    sum_i |sort(p)_i - sort(q)_i|          descending, with zeros for the shorter vocabulary

It is the Wasserstein distance where every token is as far from every other. Where the teacher reads other tokens, both
are compared at the ends of the spans that they share (`losses/alignment.py`), as TRL's extension has it; the authors'
code compares the n-th tokens of both, which soon are different text. A class that the teacher masks with -inf has the
probability 0.

It sorts the whole vocabulary at every position, and the whole batch's logits exist at once: a factored head is not cut
into pieces. No T^2: published code has none, and the gradient falls as 1 / T. The authors' weight is 1.5.

Config: objective.uld.term = "uld()", beside teachers.NAME.reads = "teacher/" and data.tokens = "aligned(...)"
When: a teacher of another vocabulary of which little is shared; else `gold` knows more.
Checked: published code (llm-recipes of the authors; TRL's GOLD where tokens differ), in value and gradient.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.term import stateless
from jaxdistill.losses.text.alignment import aligned


def sorted_distance(
    student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch others"]
) -> Float[Array, "*batch"]:
    """The sum of |sort p - sort q| of probabilities or of measures, zeros filling up the fewer classes."""
    most = max(student.shape[-1], teacher.shape[-1])

    def ranked(x: Array) -> Array:
        filled = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, most - x.shape[-1])])
        return jnp.sort(filled, axis=-1, descending=True)

    return jnp.sum(jnp.abs(ranked(student) - ranked(teacher)), axis=-1)


@losses.register
def uld(teacher: int = 0, temperature: Scalar = 1.0) -> Term:
    """Distance of sorted probabilities to one teacher, of whatever vocabulary.

    Args:
        teacher: which teacher. Distributions over unlike tokens have no mean, so one is chosen.
        temperature: number or schedule, positive.
    """
    schedule = require_positive("temperature", as_schedule(temperature))

    def values(signals: Signals) -> Array | tuple[Array, Array]:
        seen = aligned(signals, teacher)
        return seen.told(sorted_distance(jnp.exp(seen.student), jnp.exp(seen.teacher)))

    needs = frozenset({"teacher", "alignment"})
    return stateless(values, local=False, needs=needs, temperature=schedule)
