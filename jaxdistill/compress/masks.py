"""Unstructured pruning: set single weights to zero while a model trains, by magnitude or by the Wanda score.

When: the file is compressed before it is sent, or the device has kernels for 2 of 4 weights. A CPU computes a product
with zeros in the same time, and a file holds a zero in as many bytes; structured pruning (`cut.py`) saves both.
Config: student.masks = "sparse(share=0.8)"
Experiment: `experiments/masks`.
Checked: masks by hand; shares and patterns to the weight; pruned weights are 0 after every update, resumed or not.

    score     magnitude: |W_ij|               ranked within each kernel
              wanda: |W_ij| ||x_i||_2         ranked within each output j; x_i: its input, a running mean over batches
    share     s_t = s (1 - (1 - (t - t0) / (t1 - t0))^3), from t0 = start to t1 = end of the training
    pattern   the `keep` largest of every `of` neighbouring inputs, from `start` on

It is an optax transformation around the optimiser: gradients of pruned weights are zero, and each update sets them to
zero, so that they rank last from then on: a pruned weight stays zero, and a pattern is chosen once. Only the student's
own kernels are pruned; teachers, projectors and gates are not. The controls are pruned alike. Kernels of stacked layers
(a scan) are ranked layer by layer; in a convolution, an output has the weights of all positions and input channels.

Sources: schedule: Zhu and Gupta, To Prune, or Not to Prune, 2017 (arxiv.org/abs/1710.01878); patterns: Mishra et al.,
Accelerating Sparse Deep Neural Networks, 2021 (arxiv.org/abs/2104.08378); Wanda: Sun et al., A Simple and Effective
Pruning Approach for Large Language Models, 2023 (arxiv.org/abs/2306.11695).
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdistill.compress.added import SQUARE
from jaxdistill.compress.products import Axes, Weight, forward
from jaxdistill.compress.unit_scores import counted_tokens, sum_over_counted
from jaxdistill.core.collectives import psum
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.marked_arrays import Collected, Combine
from jaxdistill.core.registry import masks
from jaxdistill.core.types import Array, ByRole, Key, Outputs, Params, PyTree, RowsLike, State, Variables

PATH, ROLE = "student.masks", "student"
MOMENTUM = 0.99  # decay of the running mean of squared inputs
# combines the squared inputs of two products with the same weight
ADDED = Combine(lambda a, b: a + b, lambda x: x.sum(0))

Scores = Callable[[str, Array, Mapping[str, Array]], Array]  # (name, kernel, state of the model) -> scores


class Pruner(NamedTuple):
    """A pruning method, which sets weights to zero during training.

    wrap: `(model) -> model`; the new model also measures the inputs of its kernels if the pruning scores need them
    optimizer: `(optimiser, number of training steps) -> optimiser`, both optax transformations; the new one also prunes
    """

    wrap: Callable[[Model], Model]
    optimizer: Callable[[optax.GradientTransformation, int], optax.GradientTransformationExtraArgs]


@masks.register
def sparse(
    share: float = 0.0,
    keep: int = 0,
    of: int = 0,
    by: Literal["magnitude", "wanda"] = "magnitude",
    start: float = 0.1,
    end: float = 0.6,
    every: int = 10,
    only: str = "kernel$",
) -> Pruner:
    """Prune the student's weights during training, up to a given share of them or to an N:M pattern such as 2:4.

    Pruned weights are set to zero and stay zero. In an N:M pattern, N of every M neighbouring weights are kept.

    Args:
        share: share of the weights that are zero in the end, above 0 and below 1. Give either `share` or `keep` and
            `of`.
        keep, of: the N:M pattern: `keep` is N and `of` is M, counted along the inputs of each output.
        by: importance of a weight: "magnitude" is its absolute value; "wanda" is its absolute value times the root mean
            square of its input.
        start, end: when pruning starts, and when the share is reached, as fractions of the training.
        every: number of steps between two updates of the pruning mask.
        only: regex of the names of the kernels `[..., inputs, outputs]` to prune.

    Source: Zhu and Gupta 2017, arxiv.org/abs/1710.01878; Mishra et al. 2021, arxiv.org/abs/2104.08378; Sun et al. 2023,
    arxiv.org/abs/2306.11695.

    Raises:
        ValueError: neither a share nor a pattern is given, or both are; a number is out of range; `only` is no regex.
    """
    if bool(share) == bool(keep or of):
        raise ValueError("give a share, such as share=0.8, or a pattern, such as keep=2, of=4")
    if share and not 0 < share < 1:
        raise ValueError(f"share={share} is not between 0 and 1")
    if not share and not 0 < keep < of:
        raise ValueError(f"keep={keep}, of={of}: give fewer weights that stay than there are, such as keep=2, of=4")
    if not 0 <= start <= end <= 1:
        raise ValueError(f"start={start}, end={end}: give shares of the training, 0 <= start <= end <= 1")
    if every < 1:
        raise ValueError(f"every={every} is not positive")
    try:
        re.compile(only)
    except re.error as error:
        raise ValueError(f"only={only!r} is no regular expression ({error})") from None
    return pruner(Settings(share, keep, of, by == "wanda", start, end, every, only))


class Settings(NamedTuple):
    """The checked arguments of `sparse`; `by_inputs` is True if the score of a weight is that of Wanda."""

    share: float
    keep: int
    of: int
    by_inputs: bool
    start: float
    end: float
    every: int
    only: str

    def kernels(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the kernels to prune, as a dict by parameter name; parameters that are not trained are left out.

        Raises:
            ConfigError: there are no such kernels, or the number of inputs of one is not a multiple of `of`.
        """
        # the other kernels are locked
        trained = {name: x for name, x in params.items() if not isinstance(x, optax.MaskedNode)}
        kernels = {name: x for name, x in trained.items() if x.ndim > 1 and re.search(self.only, name)}
        if not kernels:
            raise ConfigError(PATH, f"only={self.only!r} matches no kernel; there are {', '.join(sorted(trained))}.")
        for name, x in kernels.items():
            if self.of and x.shape[-2] % self.of:
                problem = f"{name} has {x.shape[-2]} inputs, no multiple of {self.of}"
                raise ConfigError(PATH, f"{problem}. Leave it out by `only`, or give another pattern.")
        return kernels

    def share_at(self, step: Array, steps: int) -> Array:
        """Compute the share of all weights that is pruned at a training step; it grows cubically from 0 to `share`.

        Args:
            step: number of the step.
            steps: number of steps of the training.
        """
        first, last = self.moments(steps)
        done = jnp.clip((step - first) / max(last - first, 1), 0.0, 1.0) if last > first else 1.0
        return jnp.where(step >= first, self.share * (1 - (1 - done) ** 3), 0.0)

    def moments(self, steps: int) -> tuple[int, int]:
        """Return the first and the last step at which the pruning mask is updated.

        An N:M pattern is complete after the first update.
        """
        last = max(steps - 1, 0)
        return min(int(self.start * steps), last), min(int(self.end * steps), last)

    def chosen(self, score: Array, share: Array) -> Array:
        """Compute the pruning mask of a kernel, which is True for the weights that are kept.

        Weights are ranked within groups. A group is `of` neighbouring inputs of one output for an N:M pattern, the
        weights of one output for Wanda, and otherwise a whole kernel (one layer of it, if layers are stacked).

        Args:
            score: importance of each weight, `[..., inputs, outputs]`.
            share: share of the weights to prune; not used for an N:M pattern.

        Returns:
            A boolean mask of the shape of the scores. At least one weight of each group is kept.
        """
        if self.of:
            grouped = score.reshape(*score.shape[:-2], -1, self.of, score.shape[-1])
            return (_ranks(grouped, -2) < self.keep).reshape(score.shape)
        layers = score.shape[0] if score.ndim == 3 else 1
        grouped = score.reshape(layers, -1, score.shape[-1])  # [layers, inputs, outputs]
        if not self.by_inputs:
            grouped = grouped.reshape(layers, -1, 1)
        number = jnp.maximum(jnp.round((1 - share) * grouped.shape[1]), 1)
        return (_ranks(grouped, 1) < number).reshape(score.shape)


def _ranks(score: Array, axis: int) -> Array:
    """Return the rank of each score along an axis; the largest score has rank 0, and ties are ranked by position."""
    return jnp.argsort(jnp.argsort(-score, axis=axis, stable=True), axis=axis)


def pruner(settings: Settings) -> Pruner:
    """Build the pruning method for some settings, which may be a subclass of `Settings` with other pruning masks."""
    wrap = partial(_measured, settings) if settings.by_inputs else lambda model: model
    return Pruner(wrap, partial(_pruned, settings))


class MaskState(NamedTuple):
    """The state of the optimiser transformation that prunes.

    updates: number of updates so far
    kept: pruning mask of each kernel, by parameter name; True for the weights that are kept
    inner: state of the wrapped optimiser
    """

    updates: Array
    kept: dict[str, Array]
    inner: PyTree


def _pruned(
    settings: Settings, inner: optax.GradientTransformation, steps: int
) -> optax.GradientTransformationExtraArgs:
    first, last = settings.moments(steps)
    whole = optax.with_extra_args_support(inner)

    def init(params: ByRole) -> MaskState:
        kernels = settings.kernels(params[ROLE])
        kept = {name: jnp.ones(x.shape, bool) for name, x in kernels.items()}
        return MaskState(jnp.zeros((), jnp.int32), kept, inner.init(params))

    def choose(count: Array, params: Params, model_state: State) -> dict[str, Array]:
        share = settings.share_at(count, steps)
        squares = {name: model_state.get(name + SQUARE) for name in settings.kernels(params)}

        def score(name: str, x: Array) -> Array:
            size = jnp.abs(x.astype(jnp.float32))
            if not settings.by_inputs:
                return size
            if squares[name] is None:
                raise ConfigError(PATH, f"by='wanda' knows no inputs of {name}: this step trains another model.")
            return size * jnp.sqrt(squares[name])[..., :, None]

        return {name: settings.chosen(score(name, x), share) for name, x in settings.kernels(params).items()}

    def update(
        grads: ByRole, state: MaskState, params: ByRole | None = None, *, model_state: Any = None, **extra: Any
    ) -> tuple[ByRole, MaskState]:
        assert params is not None
        count = state.updates
        is_due = (count >= first) & (count <= last) & (((count - first) % settings.every == 0) | (count == last))
        student, values = dict(params[ROLE]), (model_state or {}).get(ROLE, {})
        kept = jax.lax.cond(is_due, lambda: choose(count, student, values), lambda: state.kept)
        select = lambda tree, other: {
            **tree[ROLE],
            **{name: jnp.where(mask, tree[ROLE][name], other(name)) for name, mask in kept.items()},
        }
        masked = {**grads, ROLE: select(grads, lambda name: jnp.zeros((), grads[ROLE][name].dtype))}
        updates, inner_state = whole.update(masked, state.inner, params, **extra)
        return {**updates, ROLE: select(updates, lambda name: -student[name])}, MaskState(count + 1, kept, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _measured(settings: Settings, model: Model) -> Model:
    """Wrap a model so that its state also holds a running mean of the squared inputs of its pruned kernels (Wanda)."""

    def init(key: Key, batch: RowsLike) -> tuple[Params, State]:
        params, state = model.init(key, batch)
        kernels = settings.kernels({name: x for name, x in params.items() if not name.startswith(model.locked)})
        shape = lambda x: x.shape[:-1] if x.ndim == 3 else x.shape[-2:-1]  # three axes: the first one is the layers
        return params, {**state, **{name + SQUARE: jnp.zeros(shape(x)) for name, x in kernels.items()}}

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs[Any], State]:
        known = {name: x for name, x in state.items() if name.endswith(SQUARE)}
        model_state = {name: x for name, x in state.items() if name not in known}
        if not train:
            out, new_state = model.apply(params, model_state, batch, train=train, key=key)
            return out, {**new_state, **known}
        rows = jax.tree.map(jnp.asarray, dict(batch))
        counted = counted_tokens(rows)

        def record(weight: Weight, x: Array, summed: Axes, collected: Collected) -> Array:
            if weight.name + SQUARE in known and x.shape[0] == len(counted):
                squares = jnp.moveaxis(jnp.square(x.astype(jnp.float32)), summed[0], -1)
                collected.add(weight.name, sum_over_counted(squares, counted))
            return x

        (out, new_state), sums, _ = forward(
            model, params, model_state, rows, train=train, key=key, ranges={}, round_inputs=record, combine=ADDED
        )
        if missing := [name for name in known if name.removesuffix(SQUARE) not in sums]:
            kernel = missing[0].removesuffix(SQUARE)
            raise ConfigError(PATH, f"by='wanda': {kernel} is multiplied with no inputs. Leave it out by `only`.")
        count = jnp.maximum(psum(counted.sum()), 1.0)
        after = {name: _running(x, psum(sums[name.removesuffix(SQUARE)]) / count, x.shape) for name, x in known.items()}
        return out, {**new_state, **after}

    if (load_inner := model.load) is None:
        return model._replace(init=init, apply=apply)
    without = lambda shapes: {name: x for name, x in shapes.items() if not name.endswith(SQUARE)}

    def load(shapes: Variables) -> Pretrained:
        return load_inner(shapes._replace(state=without(shapes.state)))

    return model._replace(init=init, apply=apply, load=load)


def _running(known: Array, batch: Array, shape: tuple[int, ...]) -> Array:
    """Update a running mean `known` with the mean of a batch; if `known` is all zeros, return the batch's mean."""
    batch = batch.reshape(shape)
    return jnp.where((known == 0).all(), batch, MOMENTUM * known + (1 - MOMENTUM) * batch)


def finished(variables: Variables) -> Variables:
    """Return a model's variables without the running means of squared inputs that pruning has added to its state."""
    return variables._replace(state={name: x for name, x in variables.state.items() if not name.endswith(SQUARE)})


def zeros(params: Mapping[str, Any]) -> float:
    """Compute the share of weights that are 0, over all parameters with two or more axes."""
    matrices = [x for x in params.values() if x.ndim > 1]
    return float(sum(int((x == 0).sum()) for x in matrices) / max(sum(x.size for x in matrices), 1))
