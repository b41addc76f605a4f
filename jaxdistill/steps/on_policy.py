"""On-policy: the student is told of its own text what the teacher would have written there.

Agarwal et al., GKD, 2023 (arxiv.org/abs/2306.13649), algorithm 1; Lin et al., ImitKD, 2020 (arxiv.org/abs/2009.07253).

for each batch of texts:
    with probability share:   samples <- the beginning of each text, gone on with by S
    else:                     samples <- the texts
    S        <- optimizer(grad_S L(texts, samples))          # no gradient passes through what was drawn

What is learned of which text, the terms say: one with `stream = "samples"` counts the tokens that the student wrote,
all others read the texts. So the losses of the published methods are lines of a config (not here: MiniLLM's
sampling from a mixture with the teacher, DistiLLM-2's alpha for each text):

    GKD           jsd(beta=0.5) or reverse_kl on the samples; step = "on_policy(prompt=64, share=0.5)"
    in one step   share = 1, jsd on the samples and jsd on the texts, weighed by lambda and 1 - lambda
    MiniLLM       reverse_kl and policy_gradient on the samples, cross_entropy on the texts (arxiv.org/abs/2306.08543)
    DistiLLM-2    skew_reverse_kl on the samples, skew_kl on texts that the teacher wrote (`jaxdistill synthesize`;
                  arxiv.org/abs/2503.07067)

A prompt is the beginning of a row, and what is drawn sees all of it: a row had better hold one document
(`documents(pack=False)`). The student writes to the row's end, or to a `stop` token, by a cache of keys and values in
the same program: its parameters never leave the device. The log has `samples/length`, in tokens.

Config: step = "on_policy(prompt=64)"; objective.reverse_kl.stream = "samples"
When: a language model that errs on its own text otherwise than on the data: instructions, long answers.
Checked: samples, mask and gradient by hand, share 0 and 1; a step that reads the texts instead is told apart.
Experiment: `experiments/on_policy` (no gain for a small student that begins at random).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import psum
from jaxdistill.core.registry import steps
from jaxdistill.core.schedules import Scalar, as_schedule
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Array, Model, Objective, Shapes, Step
from jaxdistill.models.generate import Generated, empty_cache, generate
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import own_key, report

SAMPLES = "samples"


@steps.register
def on_policy(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    prompt: int,
    share: Scalar = 1.0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: tuple[int, ...] = (),
) -> Step:
    """The student learns from frozen teachers on the stream `samples`, which it writes itself.

    Args:
        student, teachers, objective, optimizer: given by the config.
        prompt: tokens of each text that are given.
        share: of the steps in which it writes, GKD's lambda; a number or a schedule, from 0 to 1.
        temperature, top_p: of what it writes, see `generate`; with others than 1 it is another policy than the one that
            learns.
        stop: tokens that end a text.

    Raises:
        ValueError: a number is out of range, or no term reads the samples; when it is initialised, the student writes
            no text, or the texts are no longer than the prompt.
    """
    often = as_schedule(share)
    if prompt < 1 or not 0 <= often.low <= often.high <= 1:
        raise ValueError(f"prompt is 1 or more, share from 0 to 1; got {prompt}, {often.low:g} to {often.high:g}")
    if SAMPLES not in objective.streams:
        raise ValueError("no term reads what the student writes; set objective.NAME.stream='samples'")
    parts = learner(student, teachers, objective, optimizer)

    def init(key, frozen, batch, start=NO_VARIABLES):
        _check(student, batch["train"], prompt)
        return parts.init(key, frozen, batch | {SAMPLES: batch["train"]}, start)

    def written(ts, rows, key):
        lengths = jnp.clip(_real(rows), 1, prompt)
        given, room = rows["input_ids"][:, :prompt], rows["input_ids"].shape[1] - prompt + 1
        settings: dict[str, Any] = {"steps": room, "temperature": temperature, "top_p": top_p, "stop": stop}
        return continued(rows, lengths, generate(student, ts.params["student"], given, lengths, key, **settings))

    def sampled(ts, rows, key):
        if often.low == 1:
            return written(ts, rows, key)
        chance, text = jax.random.split(key)
        writes = jax.random.uniform(chance) < often(ts.step)
        return jax.lax.cond(writes, lambda: written(ts, rows, text), lambda: dict(rows))

    def update(ts, frozen, batch):
        samples = sampled(ts, batch["train"], own_key(ts))
        seen = batch | {SAMPLES: samples}
        gradient, means, state = parts.gradient(ts, frozen, seen, objective.weights(ts.step))
        counts = samples["mask"] != 0
        length = Mean(*psum((jnp.sum(counts), jnp.sum(jnp.any(counts, axis=1)))))
        metrics = report(means, objective.total(means, ts.step), gradient) | {"samples/length": length}
        return parts.descend(ts, gradient, state), metrics

    return Step(init, update, objective.streams - {SAMPLES}, own=frozenset({SAMPLES}))


def continued(rows: dict[str, Array], lengths: Array, drawn: Generated) -> dict[str, Array]:
    """Rows whose beginnings are gone on with; their mask counts what was drawn, and their labels are what follows.

    Args:
        rows: `input_ids` and `mask`, `[rows, length]`, among others; a row of mask 0 still counts nothing.
        lengths: of the beginnings, `[rows]`.
        drawn: what follows these, one token more than a row has room for after the longest.
    """
    ids = rows["input_ids"]
    place, first = jnp.arange(ids.shape[1] + 1), lengths[:, None]
    new = jnp.take_along_axis(drawn.tokens, jnp.clip(place - first, 0, drawn.tokens.shape[1] - 1), axis=1)
    text = jnp.where(place < first, jnp.pad(ids, ((0, 0), (0, 1))), new)
    text = jnp.where(place < first + drawn.lengths[:, None], text, 0)
    follows = place[1:]  # the place of each label
    own = (follows >= first) & (follows < first + drawn.lengths[:, None]) & jnp.any(rows["mask"] != 0, 1, keepdims=True)
    fresh = {"input_ids": text[:, :-1], "label": text[:, 1:], "mask": own}
    fresh |= {name: jnp.ones_like(ids) for name in ("segment_ids", "attention_mask") if name in rows}  # one document
    return dict(rows) | {name: x.astype(rows[name].dtype) for name, x in fresh.items()}


def _real(rows: dict[str, Array]) -> Array:
    """How many tokens a row has before its padding, `[rows]`: the last of those that count is the last label."""
    counts = rows["mask"] != 0
    return jnp.max(jnp.where(counts, jnp.arange(2, counts.shape[1] + 2), 0), axis=1)


def _check(student: Model, rows: Shapes, prompt: int) -> None:
    if "input_ids" not in rows or rows["mask"].ndim != 2:
        raise ValueError("the student writes running text, and the data are none; set data.tokens='documents(...)'")
    length = rows["input_ids"].shape[1]
    if prompt > length:
        raise ValueError(f"prompt={prompt} leaves nothing to write of {length} tokens; choose fewer, or longer rows")
    slots: Any = jax.ShapeDtypeStruct((1, length), jnp.int32)
    empty_cache(student, slots)  # or it says that there can be none
