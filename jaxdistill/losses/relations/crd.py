"""Contrastive representation distillation (CRD): distinguish each teacher embedding from thousands of negatives.

Tian, Krishnan and Isola, Contrastive Representation Distillation, 2020 (arxiv.org/abs/1910.10699).

    P(s, t) = exp(s . t / T) / Z,    c = K / records + 1e-7
    loss    = -log P / (P + c) for the example's own t, and -sum log of (K / records) / (P + c) over K negatives

s and t are the student's and the teacher's embedding of an example, and `records` is the number of examples of the
training set. The loss of an example is the sum of two directions: its student embedding among teacher embeddings, and
its teacher embedding among student embeddings. Embeddings are projected by a linear layer and normalised to unit
length. The negatives come from two memory banks with an entry for every training example, `[records, width]`:

- A bank is read BEFORE it is updated. Then the entry of each example of the batch becomes unit(m old + (1 - m) new),
  m = 0.5.
- Z is `records` times the mean of exp(s . t / T) over the first batch, and is fixed afterwards. The paper makes it a
  constant, so this is one of few losses with a `stop_gradient`. Z is fixed at the first step even if the weight of the
  loss is 0 then.
- Banks and Z are state: they are saved and restored, and the banks are sharded by entries over the mesh axis `data`.
  The batch is gathered before the update, so every device writes the same. If an example occurs twice in a batch, its
  last embedding is written.

Negatives are drawn uniformly from all other examples, with a separate key for each row of the batch, so that pmap and
jit draw the same. The published loader draws from examples of OTHER CLASSES on CIFAR-100; this loss does not know the
labels (one of a hundred negatives is of the same class). All similarities are computed as one product with a bank, from
which the drawn ones are taken: `[batch, records]` numbers instead of the `[batch, K, width]` of the published code.

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
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.hidden.convolution import init_kernel
from jaxdistill.losses.relations.relations import LayerPair, local_representations
from jaxdistill.losses.term import unit

EPSILON = 1e-7  # as in the published code
SIDES = ("student", "teacher")


def bank_similarities(
    rows: Float[Array, "rows width"], bank: Float[Array, "records width"], indices: Integer[Array, "rows some"]
) -> Float[Array, "rows some"]:
    """Compute `rows[r] . bank[indices[r, k]]` for each row r of a batch and each of its k indices.

    The bank has one stored embedding for each training example. The result is NaN for an index outside the bank.
    """
    products = jnp.einsum("bw,nw->bn", rows, bank, precision=jax.lax.Precision.HIGHEST)
    return jnp.take_along_axis(products, indices, axis=1, mode="fill", fill_value=jnp.nan)


def log_normalizer(scores: Float[Array, "rows some"], valid: Bool[Array, " rows"], records: int) -> Float[Array, ""]:
    """Compute log(records * mean(exp(scores))) over the valid rows of all devices, the logarithm of the normaliser Z.

    Division by Z makes exp(score) a probability over all entries of a memory bank, which has one stored embedding for
    each training example. The result is -inf if no row is valid.

    Args:
        scores: similarities, divided by the temperature, of each row of the batch with some entries of the bank.
        valid: False for padding.
        records: number of entries of the bank.
    """
    by_row, valid = gather((jax.nn.logsumexp(scores, axis=1), valid))
    total = jax.nn.logsumexp(jnp.where(valid, by_row, -jnp.inf))
    return total + jnp.log(records / (scores.shape[1] * jnp.maximum(jnp.sum(valid), 1)))


def nce_loss(log_p: Float[Array, "rows some"], records: int) -> Float[Array, " rows"]:
    """Compute the noise-contrastive loss of each row from the log-probabilities of one positive and K negatives.

        -log(P / (P + c)) of the positive  +  sum over the negatives of -log(n / (P + c))

    P = exp(log_p), n = K / records, and c = n + 1e-7. Both logarithms are computed as a softplus of log_p - log c,
    which is finite at any temperature.

    Args:
        log_p: log P of the candidates of each row; the first column is the positive, the other K are the negatives.
        records: number of training examples, from which the negatives are drawn.
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
    """Update a memory bank (one stored embedding for each training example) with the embeddings of a batch.

    Entry i = index[r] becomes unit(momentum * bank[i] + (1 - momentum) * rows[r]), where unit divides a vector by its
    norm. If an example occurs in several rows, the last valid row is used.

    Args:
        bank: one unit vector for each training example.
        rows: the new embeddings.
        index: number of each row's example in the training set.
        valid: False for rows that are padding; they change nothing.
        momentum: weight of the old entry.
    """
    order = jnp.arange(len(index))
    later = (index[None, :] == index[:, None]) & valid[None, :] & (order[None, :] > order[:, None])
    target = jnp.where(valid & ~jnp.any(later, axis=1), index, len(bank))  # out of range: dropped
    return bank.at[target].set(unit(momentum * bank[index] + (1 - momentum) * rows), mode="drop")


def draw_negatives(
    key: Array, index: Integer[Array, " rows"], negatives: int, records: int
) -> Integer[Array, "rows negatives"]:
    """Draw the numbers of other training examples for each row of a batch, uniformly and with replacement.

    Args:
        key: PRNG key.
        index: number of each row's own example, which is never drawn for this row.
        negatives: how many numbers to draw for each row.
        records: number of training examples; the drawn numbers are from 0 to records - 1.
    """
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
    """Build the contrastive (CRD) loss term: distinguish each example's embedding from those of K other examples.

        -log(P / (P + c)) of the example itself  +  sum over K negatives of -log(n / (P + c)),   P = exp(s . b / T) / Z

    s is the example's student embedding, after a learned projection to unit length, and b an entry of a memory bank,
    which stores the teacher embedding of each training example. n = K / records, c = n + 1e-7, and the first batch sets
    the constant Z. The same loss with student and teacher exchanged is added. The loss is the mean over the batch,
    which must have the field `index`: the number of each example in the training set.

    Args:
        records: number of examples of the training set; if it is too small, the loss is NaN and the run stops.
        negatives: K, the number of negatives for each example.
        temperature: T, which divides the similarities.
        momentum: weight of the old entry when a bank is updated with the embeddings of a batch.
        width: width of the projected embeddings.
        layers: pair (student layer, teacher layer) whose hidden states are compared, each averaged over its positions
            (tokens or pixels); negative numbers count from the end; None compares the models' embeddings.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: an argument is out of range; when the loss is computed, the batch has no field `index`.
    """
    if min(negatives, width) < 1 or records < 2 or temperature <= 0 or not 0 <= momentum < 1:
        sizes = f"records={records}, negatives={negatives}, width={width}"
        raise ValueError(
            "records must be 2 or more, negatives and width 1 or more, temperature above 0 and 0 <= momentum < 1; "
            f"got {sizes}, temperature={temperature}, momentum={momentum}"
        )

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        params: dict[str, Array] = {}
        state: dict[str, Array] = {}
        *pair, _ = local_representations(signals, layers, teacher)
        for number, (side, rows) in enumerate(zip(SIDES, pair, strict=True)):
            projection_key, bank_key = jax.random.split(jax.random.fold_in(key, number))
            params |= _init_projection(side, projection_key, rows.shape[-1], width)
            state |= _init_bank(side, bank_key, records, width)
        return params, state

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Float[Array, ""], State]:
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
    """Draw a memory bank whose entries have a mean squared norm of 1; log Z is -inf, which means not yet known."""
    bound = (3 / width) ** 0.5
    bank = jax.random.uniform(key, (records, width), minval=-bound, maxval=bound)
    return {f"{side}/bank": bank, f"{side}/log_z": jnp.full((), -jnp.inf, float)}


def _project(params: dict[str, Array], side: str, rows: Array) -> Array:
    return unit(rows @ params[f"{side}/kernel"] + params[f"{side}/bias"])
