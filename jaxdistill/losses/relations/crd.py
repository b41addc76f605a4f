"""Contrastive representation distillation (CRD): distinguish each teacher embedding from thousands of negatives.

Tian, Krishnan and Isola, Contrastive Representation Distillation, 2020 (arxiv.org/abs/1910.10699).

    P(s, t) = exp(s . t / T) / Z,    c = K / records + 1e-7
    loss    = -log P / (P + c) for the example's own t, and -sum log of (K / records) / (P + c) over K negatives

The loss of an example is the sum of two directions: the student's row s among teacher rows, and the teacher's row among
student rows. Rows are projected by a linear layer and normalised to unit length. The negatives come from two memory
banks with a row for every record, `[records, width]`:

- A bank is read BEFORE it is updated. Then each row of the batch becomes unit(m old + (1 - m) new), m = 0.5.
- Z is records times the mean of exp(s . t / T) over the first batch, and is fixed afterwards. The paper makes it a
  constant, so this is one of few losses with a `stop_gradient`. A weight of 0 in the first steps does not postpone it.
- Banks and Z are state: they are saved and restored, and the banks are sharded by rows over the mesh axis `data`. Rows
  are gathered before the update, so every device writes the same. If a record occurs twice in a batch, its last row is
  written.

Negatives are drawn uniformly from all other records, with a separate key for each row, so that pmap and jit draw the
same. The published loader draws from records of OTHER CLASSES on CIFAR-100; this loss does not know the labels (one of
a hundred negatives is of the same class). All similarities are computed as one product with a bank, from which the
drawn ones are taken: `[batch, records]` numbers instead of the `[batch, K, width]` of the published code.

Config: objective.crd.term = "crd(records=50000)"; objective.crd.weight = 0.8
When: labelled or unlabelled data whose bank fits in memory, and a wide gap between teacher and student. It was the best
method of its time on CIFAR-100, alone and with soft targets (75.51 for res32x4 -> res8x4, where kd has 73.33).
Checked: two steps equal those of the published code, including banks and Z (1e-12 in float64); results are equal on
every mesh, and bit-identical after a resume.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from jaxdistill.core.collectives import by_rows, gather, row_keys
from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array
from jaxdistill.losses.hidden.convolution import init_kernel
from jaxdistill.losses.relations.relations import LayerPair, local_representations
from jaxdistill.losses.term import unit

EPSILON = 1e-7  # the published code's
SIDES = ("student", "teacher")


def bank_similarities(
    rows: Float[Array, "rows width"], bank: Float[Array, "records width"], indices: Integer[Array, "rows some"]
) -> Float[Array, "rows some"]:
    """Compute the inner products of each row with the bank's rows at its indices; NaN for an index out of range."""
    products = jnp.einsum("bw,nw->bn", rows, bank, precision=jax.lax.Precision.HIGHEST)
    return jnp.take_along_axis(products, indices, axis=1, mode="fill", fill_value=jnp.nan)


def log_normalizer(scores: Float[Array, "rows some"], valid: Bool[Array, " rows"], records: int) -> Float[Array, ""]:
    """Compute log Z, the log of `records` times the mean of exp(score) over the valid rows of all devices.

    It is -inf if no row is valid.
    """
    by_row, valid = gather((jax.nn.logsumexp(scores, axis=1), valid))
    total = jax.nn.logsumexp(jnp.where(valid, by_row, -jnp.inf))
    return total + jnp.log(records / (scores.shape[1] * jnp.maximum(jnp.sum(valid), 1)))


def nce_loss(log_p: Float[Array, "rows some"], records: int) -> Float[Array, " rows"]:
    """Compute the noise-contrastive loss; the first column is the positive pair, the other K are negatives.

    log c is subtracted first, so that every logarithm of the formula is a softplus, finite at any temperature.
    """
    noise = (log_p.shape[1] - 1) / records
    log_odds = log_p - jnp.log(noise + EPSILON)
    negatives = jax.nn.softplus(log_odds[:, 1:]) + jnp.log1p(EPSILON / noise)
    return jax.nn.softplus(-log_odds[:, 0]) + jnp.sum(negatives, axis=1)


def update_bank(
    bank: Float[Array, "records width"],
    rows: Float[Array, "rows width"],
    index: Integer[Array, " rows"],
    valid: Bool[Array, " rows"],
    momentum: float,
) -> Float[Array, "records width"]:
    """Return the bank with the records `index` moved towards `rows`; of several rows of a record, the last is used."""
    order = jnp.arange(len(index))
    later = (index[None, :] == index[:, None]) & valid[None, :] & (order[None, :] > order[:, None])
    target = jnp.where(valid & ~jnp.any(later, axis=1), index, len(bank))  # out of range: dropped
    return bank.at[target].set(unit(momentum * bank[index] + (1 - momentum) * rows), mode="drop")


def draw_negatives(
    key: Array, index: Integer[Array, " rows"], negatives: int, records: int
) -> Integer[Array, "rows negatives"]:
    """Draw the numbers of other records for each row, with replacement."""
    draw = lambda row_key: jax.random.randint(row_key, (negatives,), 0, records - 1)
    drawn = jax.vmap(draw)(row_keys(key, len(index)))
    return drawn + (drawn >= index[:, None])


@losses.register
def crd(
    records: int,
    negatives: int = 16384,
    temperature: float = 0.07,
    momentum: float = 0.5,
    width: int = 128,
    layers: LayerPair = None,
    teacher: int = 0,
) -> Term:
    """Contrast each example with negatives from memory banks; the batch's field `index` has each row's record number.

    Args:
        records: number of records of the training split; if it is too small, the loss is NaN and the run stops.
        negatives: K, the number of negatives for each example.
        temperature: T.
        momentum: m, the share of the old row in an update of the bank.
        width: of the projections and of the banks.
        layers: (student layer, teacher layer) whose hidden states, averaged over their positions, are compared; None:
            embeddings.
        teacher: index of the teacher.

    Raises:
        ValueError: an argument is out of range; when the term is applied, the batch has no field `index`.
    """
    if min(negatives, width) < 1 or records < 2 or temperature <= 0 or not 0 <= momentum < 1:
        sizes = f"records={records}, negatives={negatives}, width={width}"
        raise ValueError(
            "records must be 2 or more, negatives and width 1 or more, temperature above 0 and 0 <= momentum < 1; "
            f"got {sizes}, temperature={temperature}, momentum={momentum}"
        )

    def init(key, signals):
        params: dict[str, Array] = {}
        state: dict[str, Array] = {}
        *pair, _ = local_representations(signals, layers, teacher)
        for number, (side, rows) in enumerate(zip(SIDES, pair, strict=True)):
            projection_key, bank_key = jax.random.split(jax.random.fold_in(key, number))
            params |= _init_projection(side, projection_key, rows.shape[-1], width)
            state |= _init_bank(side, bank_key, records, width)
        return params, state

    def apply(params, state, signals, *, key):
        if "index" not in signals.batch:
            raise ValueError("the batch has no field 'index' with each row's record number; train batches have one")
        *pair, valid = local_representations(signals, layers, teacher)
        index = jnp.where(valid, signals.batch["index"], 0)
        candidates = jnp.concatenate([index[:, None], draw_negatives(key, index, negatives, records)], axis=1)
        rows = {side: by_rows(_project(params, side, x)) for side, x in zip(SIDES, pair, strict=True)}
        values, new_state = jnp.zeros(len(index)), {}
        for side, other in (SIDES, SIDES[::-1]):
            scores = bank_similarities(rows[side], state[f"{other}/bank"], candidates) / temperature
            first = jax.lax.stop_gradient(log_normalizer(scores, valid, records))
            log_z = jnp.where(jnp.isneginf(state[f"{side}/log_z"]), first, state[f"{side}/log_z"])
            values += nce_loss(scores - jnp.where(jnp.isneginf(log_z), 0, log_z), records)
            new_state[f"{side}/log_z"] = log_z
        rows, index, valid, values = gather((rows, index, valid, values))
        for side in SIDES:
            new_state[f"{side}/bank"] = update_bank(state[f"{side}/bank"], rows[side], index, valid, momentum)
        return jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(jnp.sum(valid), 1), new_state

    return Term(init, apply, local=False, needs=frozenset({"teacher"}))


def _init_projection(side: str, key: Array, inputs: int, width: int) -> dict[str, Array]:
    return {f"{side}/kernel": init_kernel(key, inputs, width), f"{side}/bias": jnp.zeros(width)}


def _init_bank(side: str, key: Array, records: int, width: int) -> dict[str, Array]:
    """Draw a bank whose rows have a mean squared norm of 1; log Z is -inf, which means not yet known."""
    bound = (3 / width) ** 0.5
    bank = jax.random.uniform(key, (records, width), minval=-bound, maxval=bound)
    return {f"{side}/bank": bank, f"{side}/log_z": jnp.full((), -jnp.inf, jnp.float32)}


def _project(params: dict[str, Array], side: str, rows: Array) -> Array:
    return unit(rows @ params[f"{side}/kernel"] + params[f"{side}/bias"])
