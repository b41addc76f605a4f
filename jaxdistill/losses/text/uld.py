"""Universal logit distillation (ULD): sorted probabilities are compared by rank, across any two vocabularies.

Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs, 2024
(arxiv.org/abs/2402.12030). With p the teacher's and q the student's probabilities:

    sum_i |sort(p)_i - sort(q)_i|          descending, with zeros for the shorter vocabulary

This is the Wasserstein distance if all tokens are equally far from each other. If the teacher has another tokenizer,
both models are compared at the ends of shared spans (`losses/text/alignment.py`), as in TRL's extension. A span is the
text between two places where tokens of both models end. The authors' code compares the n-th tokens of both, which soon
belong to different text. A class that the teacher masks with -inf has probability 0.

The whole vocabulary is sorted at every position, so the logits of the whole batch are computed at once, not in chunks.
There is no T^2: the published code has none, and the gradient falls as 1 / T. The authors' weight is 1.5.

Config: objective.uld.term = "uld()", beside teachers.NAME.reads = "teacher/" and data.tokens = "aligned(...)"
Mean: `reduction="text"` in both sources: over the answer tokens of each text and then over texts in the authors' code
(llm-recipes ab6e798, models/distillation_model.py, lines 160 to 164), over the spans of each text and then over texts
in TRL (f2cd577, trl/experimental/gold/gold_trainer.py, lines 520 to 524). DSKD divides by all tokens (077337a,
code/criterions/universal_logit_distillation.py, line 65). The default here is "token", as for all losses.
When: the teacher has another vocabulary and shares few tokens with the student. If it shares many, `gold` uses them.
Checked: against published code (the authors' llm-recipes; TRL's GOLD if tokens differ), in value and gradient.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import stateless
from jaxdistill.losses.text.alignment import align


def sorted_distance(
    student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch others"]
) -> Float[Array, "*batch"]:
    """Compute sum_i |sort(p)_i - sort(q)_i| for the teacher's p and the student's q, each sorted in descending order.

    p and q are probabilities of tokens, or measures that need not sum to 1. The smaller vocabulary is padded with
    zeros.
    """
    classes = max(student.shape[-1], teacher.shape[-1])

    def ranked(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, classes - x.shape[-1])])
        return jnp.sort(padded, axis=-1, descending=True)

    return jnp.sum(jnp.abs(ranked(student) - ranked(teacher)), axis=-1)


@losses.register
def uld(teacher: int = 0, temperature: Scalar = 1.0) -> Term:
    """Build the universal logit distillation (ULD) loss term sum_i |sort(p)_i - sort(q)_i|, for any two vocabularies.

    p and q are the teacher's and the student's softmax(logits / T), each sorted in descending order. The smaller
    vocabulary is padded with zeros. With different tokenizers, p and q are probabilities of spans of text, see `align`.

    Args:
        teacher: index of the teacher, in the order of the config. Only one teacher is used, because distributions over
            different tokens cannot be averaged.
        temperature: T, a positive number or a schedule over the training steps.

    Raises:
        ValueError: the temperature is not positive; when the loss is computed, the teacher has another tokenizer, and
            the batch does not hold the spans of both models' tokens.
    """
    schedule = require_positive("temperature", as_schedule(temperature))

    def values(signals: Signals) -> Array | tuple[Array, Array]:
        aligned = align(signals, teacher)
        return aligned.with_mask(sorted_distance(jnp.exp(aligned.student), jnp.exp(aligned.teacher)))

    needs = frozenset({"teacher", "alignment"})
    return stateless(values, local=False, needs=needs, temperature=schedule)
