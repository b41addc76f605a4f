"""Contrastive representation distillation: a student's embedding knows its example among thousands.

Tian, Krishnan and Isola, Contrastive Representation Distillation, 2020 (arxiv.org/abs/1910.10699).

    P(s, t) = exp(s . t / T) / Z,    c = K / records + 1e-7
    loss    = -log P / (P + c) of the example's own t, and -sum log of (K / records) / (P + c) over K others'

for each example, once for the student's row s among the teacher's and once the other way, added; both are projected
(linear) to unit length. The others' rows come from two memory banks with a row for every record, `[records, width]`:

- A bank is read BEFORE it is written. Afterwards the rows of the batch become unit(m old + (1 - m) new), m = 0.5.
- Z is records times the mean of exp(s . t / T) over the first batch, then frozen; the paper makes it a constant, so
  that this is one of few terms with a `stop_gradient`. A weight of 0 in the first steps does not put this off.
- Banks and Z are state: saved, resumed, and the banks split by rows over the devices of `data`. Rows are gathered
  before they are written, so that every device writes the same. Where a record is in a batch twice, its last row stays.

The others are drawn evenly from all other records, each row with a key of its own: pmap draws what jit draws. The
published loader draws from records of OTHER CLASSES on CIFAR-100; this term does not know their labels (one of a
hundred others is of the same class). All similarities are one product with a bank, of which the drawn ones are taken:
`[batch, records]` numbers instead of the `[batch, K, width]` of the published code.

Config: objective.crd.term = "crd(records=50000)"; objective.crd.weight = 0.8
When: labelled or unlabelled data that fits a bank, wide gaps between teacher and student; best of its time on
CIFAR-100, alone and with soft targets (75.51 for res32x4 -> res8x4, where kd has 73.33).
Checked: two steps of the published code, banks and Z included (1e-12 in float64); on every mesh; resumed to the bit.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from jaxdistill.core.collectives import by_rows, gather, row_keys
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Term
from jaxdistill.losses.hidden.convolution import kernel
from jaxdistill.losses.relations.relations import Layers, own
from jaxdistill.losses.term import unit

EPSILON = 1e-7  # the published code's
SIDES = ("student", "teacher")


def similarities(
    rows: Float[Array, "rows width"], bank: Float[Array, "records width"], numbers: Integer[Array, "rows some"]
) -> Float[Array, "rows some"]:
    """Inner products of each row with the bank's rows of these numbers; NaN where the bank has no such row."""
    every = jnp.einsum("bw,nw->bn", rows, bank, precision=jax.lax.Precision.HIGHEST)
    return jnp.take_along_axis(every, numbers, axis=1, mode="fill", fill_value=jnp.nan)


def log_normalizer(scores: Float[Array, "rows some"], counts: Bool[Array, " rows"], records: int) -> Float[Array, ""]:
    """Log Z: of `records` times the mean of exp(score), over the rows of all devices that count; -inf if none does."""
    by_row, counts = gather((jax.nn.logsumexp(scores, axis=1), counts))
    total = jax.nn.logsumexp(jnp.where(counts, by_row, -jnp.inf))
    return total + jnp.log(records / (scores.shape[1] * jnp.maximum(jnp.sum(counts), 1)))


def contrast(log_p: Float[Array, "rows some"], records: int) -> Float[Array, " rows"]:
    """Noise-contrastive estimation: the first column is the true pair, the K others are noise.

    With log c apart, every logarithm of the formula is a softplus, finite at any temperature.
    """
    noise = (log_p.shape[1] - 1) / records
    log_odds = log_p - jnp.log(noise + EPSILON)
    others = jax.nn.softplus(log_odds[:, 1:]) + jnp.log1p(EPSILON / noise)
    return jax.nn.softplus(-log_odds[:, 0]) + jnp.sum(others, axis=1)


def written(
    bank: Float[Array, "records width"],
    rows: Float[Array, "rows width"],
    index: Integer[Array, " rows"],
    counts: Bool[Array, " rows"],
    momentum: float,
) -> Float[Array, "records width"]:
    """The bank after its rows of these numbers have moved; of rows with one number, only the last is written."""
    order = jnp.arange(len(index))
    later = (index[None, :] == index[:, None]) & counts[None, :] & (order[None, :] > order[:, None])
    target = jnp.where(counts & ~jnp.any(later, axis=1), index, len(bank))  # beyond the bank: dropped
    return bank.at[target].set(unit(momentum * bank[index] + (1 - momentum) * rows), mode="drop")


def draw_others(
    key: Array, index: Integer[Array, " rows"], negatives: int, records: int
) -> Integer[Array, "rows negatives"]:
    """Numbers of other records, drawn with replacement."""
    draw = lambda own_key: jax.random.randint(own_key, (negatives,), 0, records - 1)
    drawn = jax.vmap(draw)(row_keys(key, len(index)))
    return drawn + (drawn >= index[:, None])


@losses.register
def crd(
    records: int,
    negatives: int = 16384,
    temperature: float = 0.07,
    momentum: float = 0.5,
    width: int = 128,
    layers: Layers = None,
    teacher: int = 0,
) -> Term:
    """Contrast with memory banks of all records; the batch's field `index` says which record a row is.

    Args:
        records: how many records the training split has; with fewer, the loss is NaN and the run stops.
        negatives: K, how many others each example is told from.
        temperature: T.
        momentum: the share that a bank's row keeps.
        width: of the projections, and of the banks.
        layers: (student layer, teacher layer) whose hidden states are compared, averaged over their positions; None:
            embeddings.
        teacher: which teacher.

    Raises:
        ValueError: a number is out of range; when it is applied, the batch has no field `index`.
    """
    if min(negatives, width) < 1 or records < 2 or temperature <= 0 or not 0 <= momentum < 1:
        sizes = f"records={records}, negatives={negatives}, width={width}"
        raise ValueError(
            "records is 2 or more, negatives and width 1 or more, temperature above 0, momentum from 0 to below 1; "
            f"got {sizes}, temperature={temperature}, momentum={momentum}"
        )

    def init(key, signals):
        params: dict[str, Array] = {}
        state: dict[str, Array] = {}
        *pair, _ = own(signals, layers, teacher)
        for number, (side, rows) in enumerate(zip(SIDES, pair, strict=True)):
            projection, bank = jax.random.split(jax.random.fold_in(key, number))
            params |= _projection(side, projection, rows.shape[-1], width)
            state |= _memory(side, bank, records, width)
        return params, state

    def apply(params, state, signals, *, key):
        if "index" not in signals.batch:
            raise ValueError("the batch has no field 'index' with the number of each row's record, as train batches do")
        *pair, counts = own(signals, layers, teacher)
        index = jnp.where(counts, signals.batch["index"], 0)
        numbers = jnp.concatenate([index[:, None], draw_others(key, index, negatives, records)], axis=1)
        rows = {side: by_rows(_projected(params, side, x)) for side, x in zip(SIDES, pair, strict=True)}
        values, new = jnp.zeros(len(index)), {}
        for side, other in (SIDES, SIDES[::-1]):
            scores = similarities(rows[side], state[f"{other}/bank"], numbers) / temperature
            first = jax.lax.stop_gradient(log_normalizer(scores, counts, records))
            log_z = jnp.where(jnp.isneginf(state[f"{side}/log_z"]), first, state[f"{side}/log_z"])
            values += contrast(scores - jnp.where(jnp.isneginf(log_z), 0, log_z), records)
            new[f"{side}/log_z"] = log_z
        rows, index, counts, values = gather((rows, index, counts, values))
        for side in SIDES:
            new[f"{side}/bank"] = written(state[f"{side}/bank"], rows[side], index, counts, momentum)
        return jnp.sum(jnp.where(counts, values, 0)) / jnp.maximum(jnp.sum(counts), 1), new

    return Term(init, apply, local=False, needs=frozenset({"teacher"}))


def _projection(side: str, key: Array, inputs: int, width: int) -> dict[str, Array]:
    return {f"{side}/kernel": kernel(key, inputs, width), f"{side}/bias": jnp.zeros(width)}


def _memory(side: str, key: Array, records: int, width: int) -> dict[str, Array]:
    """A bank of rows that have length 1 on average, and log Z, which is not known yet."""
    border = (3 / width) ** 0.5
    bank = jax.random.uniform(key, (records, width), minval=-border, maxval=border)
    return {f"{side}/bank": bank, f"{side}/log_z": jnp.full((), -jnp.inf, jnp.float32)}


def _projected(params: dict[str, Array], side: str, rows: Array) -> Array:
    return unit(rows @ params[f"{side}/kernel"] + params[f"{side}/bias"])
