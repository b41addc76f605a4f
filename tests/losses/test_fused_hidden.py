"""Tests of the loss `fused_hidden`: values by hand, teachers of weight 0, one teacher, and padding."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from batches import signals
from checks import assert_close, assert_same
from terms import build_loss, loss_values

from jaxdistill.core import registry
from jaxdistill.core.types import Outputs, Signals

KEY = jax.random.key(0)
TERM = "fused_hidden(layers='last')"


def taught(seen: Signals, weights) -> Signals:
    """Build signals of two teachers, one twice as wide, with the given fusion weights."""
    wide = seen.teachers[0]
    wide = replace(wide, hidden_states=tuple(np.concatenate([x, np.square(x)], axis=-1) for x in wide.hidden_states))
    fused = Outputs(seen.teachers[0].logits, weights=weights)
    return replace(seen, teachers=(seen.teachers[0], wide), teacher=fused)


def built(seen: Signals, spec: str = TERM):
    term = build_loss(spec)
    params, _ = jax.jit(lambda seen: term.init(KEY, seen))(seen)
    return params, jax.jit(lambda params, seen: term.apply(params, {}, seen, key=KEY)[0])


def test_by_hand_each_row_by_its_own_weights():
    weights = np.array([[0.25, 1.0, 0.5], [0.75, 0.0, 0.5]], np.float32)
    seen = taught(signals(batch=(3,), width=4), weights)
    params, values = built(seen)
    assert {name: x.shape for name, x in params.items()} == {"0/0/kernel": (4, 4), "1/0/kernel": (4, 8)}
    student = np.asarray(seen.student.hidden_states[-1])
    states = [np.asarray(teacher.hidden_states[-1]) for teacher in seen.teachers]
    kernels = [np.asarray(params[f"{number}/0/kernel"]) for number in range(2)]
    each = [((student @ kernel - state) ** 2).mean(-1) for kernel, state in zip(kernels, states, strict=True)]
    assert_close(values(params, seen), (weights * np.stack(each)).sum(0))
    # equal weights of all teachers would give another loss
    assert np.abs(np.asarray(values(params, seen)) - np.mean(each, axis=0)).max() > 0.03


def test_an_absent_teacher_is_not_heard_in_value_or_gradient():
    weights = np.array([[1.0, 0.5], [0.0, 0.5]], np.float32)
    seen = taught(signals(batch=(2,), width=4), weights)
    params, values = built(seen)
    first, wide = np.arange(2)[:, None] == 0, seen.teachers[1]
    lost = replace(wide, hidden_states=tuple(np.where(first, np.float32(np.nan), x) for x in wide.hidden_states))
    silent = replace(seen, teachers=(seen.teachers[0], lost))
    assert_same(values(params, silent), values(params, seen))
    slope = jax.jit(jax.grad(lambda params, seen: values(params, seen).sum()))
    assert_same(slope(params, silent), slope(params, seen))


def test_one_teacher_is_hidden_and_its_number_is_nothing():
    seen = signals(batch=(5,), width=4)
    alone = replace(seen, teachers=seen.teachers[:1])
    average = registry.fusions.build("average()", "")
    alone = replace(alone, teacher=jax.jit(lambda seen: average.apply({}, {}, seen, key=KEY)[0])(alone))
    params, values = built(alone)
    single = {name.removeprefix("0/"): x for name, x in params.items()}
    assert_close(values(params, alone), loss_values("hidden(layers='last')", alone, single))
    seen = taught(seen, np.array([[0.3], [0.7]], np.float32) * np.ones(5, np.float32))
    params, values = built(seen)
    turned = replace(
        seen, teachers=seen.teachers[::-1], teacher=Outputs(seen.teacher.logits, weights=seen.teacher.weights[::-1])
    )
    other = {f"{1 - int(name[0])}{name[1:]}": x for name, x in params.items()}
    assert_close(values(other, turned), values(params, seen))


def test_a_fusion_without_weights_is_told_its_cure():
    seen = signals(batch=(2,), width=4)
    with pytest.raises(
        ValueError, match=r"computes no teacher weights; use one that does, such as fusion='average\(\)'"
    ):
        built(seen)[1](built(seen)[0], replace(seen, teacher=seen.teachers[0]))


def test_padding_of_a_text_counts_nothing():
    text = signals(batch=(2,), extent=(4,), width=3)
    fused = Outputs(text.teachers[0].logits, weights=np.ones((1, 2), np.float32))
    real = np.int32([[1, 1, 0, 0], [1, 1, 1, 1]])
    text = replace(text, teacher=fused, batch=text.batch | {"attention_mask": real})
    _, values = built(text, "fused_hidden(layers='last', projector='none')")
    s, t = (np.asarray(x.hidden_states[-1], np.float64) for x in (text.student, text.teachers[0]))
    assert_close(values({}, text), [((s[i, :n] - t[i, :n]) ** 2).mean() for i, n in enumerate((2, 4))])
