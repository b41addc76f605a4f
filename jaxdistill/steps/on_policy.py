"""On-policy distillation (GKD): the student learns from the teacher on texts that the student generates.

Agarwal et al., GKD, 2023 (arxiv.org/abs/2306.13649), algorithm 1; Lin et al., ImitKD, 2020 (arxiv.org/abs/2009.07253).
S is the student and L the config's loss:

    for each batch of texts:
        with probability share:   samples <- the beginning of each text, continued by S
        else:                     samples <- the texts
        S        <- optimizer(grad_S L(texts, samples))          # no gradient through the sampling

Each term (loss) of the config names the texts that it reads. A term with `stream = "samples"` reads the samples and
counts the tokens that the student generated; all others read the texts of the data. So each published method is a few
lines of a config. Not implemented: MiniLLM's sampling from a mixture with the teacher, and DistiLLM-2's alpha for each
text.

    GKD           jsd(beta=0.5) or reverse_kl on the samples; step = "on_policy(prompt=64, share=0.5)"
    in one step   share = 1, jsd on the samples and jsd on the texts, with weights lambda and 1 - lambda
    MiniLLM       reverse_kl and policy_gradient on the samples, cross_entropy on the texts (arxiv.org/abs/2306.08543)
    DistiLLM-2    skew_reverse_kl on the samples, skew_kl on texts by the teacher (`jaxdistill synthesize`;
                  arxiv.org/abs/2503.07067)

A prompt is the beginning of a row of the batch, and all of it is context of the generated text. So a row should hold
one document (`documents(pack=False)`). The student generates up to the end of the row or a `stop` token. It uses a
key-value cache inside the jitted step: its parameters never leave the device. The log has `samples/length`, in tokens.

Config: step = "on_policy(prompt=64)"; objective.reverse_kl.stream = "samples"
When: a language model makes other errors on its own text than on the data: instructions, long answers.
Checked: samples, mask and gradient by hand; share 0 and 1; the tests reject a step that reads the texts instead.
Experiment: `experiments/on_policy` (no gain for a small student that starts at random).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import psum
from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.schedules import Scalar, as_schedule
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Array, Batch, Key, Rows, Shapes, TrainState, Variables
from jaxdistill.models.generate import Generated, empty_cache, generate
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import step_key, step_metrics

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
    """Build the on-policy training step: in each step, the student generates texts that losses of the config can read.

    The texts are the stream (named source of batches) `samples`: a loss with `stream = "samples"` reads them, all other
    losses read the data. The teachers are frozen.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        prompt: number of tokens at the beginning of each text of the data that are kept as the prompt.
        share: probability that a step generates texts (GKD's lambda), from 0 to 1; a number or a schedule. In all other
            steps, `samples` are the texts of the data.
        temperature: sampling temperature, which divides the logits; 0 selects the most likely token.
        top_p: sample from the smallest set of tokens with this total probability. If `temperature` or `top_p` is not 1,
            texts are not drawn from the distribution that is trained.
        stop: ids of tokens that end a text.

    Raises:
        ValueError: a number is out of range, or no loss reads the stream `samples`; when the train state is
            initialised, the data are no text, the prompt is longer than the texts, or the student cannot generate.
    """
    schedule = as_schedule(share)
    if prompt < 1 or not 0 <= schedule.low <= schedule.high <= 1:
        raise ValueError(
            f"prompt must be at least 1, share from 0 to 1; got {prompt}, {schedule.low:g} to {schedule.high:g}"
        )
    if SAMPLES not in objective.streams:
        raise ValueError("no term reads the generated samples; set objective.NAME.stream='samples'")
    parts = learner(student, teachers, objective, optimizer)

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        _check_data(student, batch["train"], prompt)
        return parts.init(key, frozen, {**batch, SAMPLES: batch["train"]}, start)

    def generated_rows(ts: TrainState, rows: Rows, key: Key) -> dict[str, Array]:
        lengths = jnp.clip(_text_lengths(rows), 1, prompt)
        prompts, new_tokens = rows["input_ids"][:, :prompt], rows["input_ids"].shape[1] - prompt + 1
        settings: dict[str, Any] = {"steps": new_tokens, "temperature": temperature, "top_p": top_p, "stop": stop}
        generated = generate(student, ts.params["student"], prompts, lengths, key, **settings)
        return rows_of_samples(rows, lengths, generated)

    def sample(ts: TrainState, rows: Rows, key: Key) -> dict[str, Array]:
        if schedule.low == 1:
            return generated_rows(ts, rows, key)
        choice_key, sampling_key = jax.random.split(key)
        generates = jax.random.uniform(choice_key) < schedule(ts.step)
        return jax.lax.cond(generates, lambda: generated_rows(ts, rows, sampling_key), lambda: dict(rows))

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        samples = sample(ts, batch["train"], step_key(ts))
        with_samples = {**batch, SAMPLES: samples}
        gradient, means, state = parts.gradient(ts, frozen, with_samples, objective.weights(ts.step))
        counts = samples["mask"] != 0
        length = Mean(*psum((jnp.sum(counts), jnp.sum(jnp.any(counts, axis=1)))))
        metrics = step_metrics(means, objective.total(means, ts.step), gradient) | {"samples/length": length}
        return parts.descend(ts, gradient, state), metrics

    return Step(init, update, objective.streams - {SAMPLES}, generated_streams=frozenset({SAMPLES}))


def rows_of_samples(rows: Rows, lengths: Array, generated: Generated) -> dict[str, Array]:
    """Replace the text after each prompt by generated tokens, and set the mask to 1 at generated labels only.

    Args:
        rows: the arrays of a batch of texts, with `input_ids`, `label` and `mask` `[rows, length]`. A row whose mask is
            0 everywhere keeps this mask.
        lengths: number of prompt tokens of each row, `[rows]`.
        generated: the generated tokens of each row, and their number.
    """
    ids = rows["input_ids"]
    position, first = jnp.arange(ids.shape[1] + 1), lengths[:, None]
    new = jnp.take_along_axis(generated.tokens, jnp.clip(position - first, 0, generated.tokens.shape[1] - 1), axis=1)
    text = jnp.where(position < first, jnp.pad(ids, ((0, 0), (0, 1))), new)
    text = jnp.where(position < first + generated.lengths[:, None], text, 0)
    label_position = position[1:]
    is_generated = (label_position >= first) & (label_position < first + generated.lengths[:, None])
    counts = is_generated & jnp.any(rows["mask"] != 0, 1, keepdims=True)
    replaced = {"input_ids": text[:, :-1], "label": text[:, 1:], "mask": counts}
    replaced |= {name: jnp.ones_like(ids) for name in ("segment_ids", "attention_mask") if name in rows}  # one document
    return dict(rows) | {name: x.astype(rows[name].dtype) for name, x in replaced.items()}


def _text_lengths(rows: Rows) -> Array:
    """Return the number of tokens of each row before its padding, `[rows]`.

    The last position that the mask counts predicts the last token.
    """
    counts = rows["mask"] != 0
    return jnp.max(jnp.where(counts, jnp.arange(2, counts.shape[1] + 2), 0), axis=1)


def _check_data(student: Model, rows: Rows | Shapes, prompt: int) -> None:
    if "input_ids" not in rows or rows["mask"].ndim != 2:
        raise ValueError("the data are no running text; set data.tokens='documents(...)'")
    length = rows["input_ids"].shape[1]
    if prompt > length:
        raise ValueError(
            f"prompt={prompt} is longer than the rows of {length} tokens; choose a shorter prompt, or longer rows"
        )
    slots: Any = jax.ShapeDtypeStruct((1, length), jnp.int32)
    empty_cache(student, slots)  # raises if the student has no cache
