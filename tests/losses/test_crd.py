"""Tests of the loss `crd`: published code over two steps, a step restated in float64, drawn negatives, and training."""

import inspect
import itertools
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from batches import signals
from checks import assert_close
from examples import slow
from terms import build_loss

import jaxdistill.run.parts  # noqa: F401  (registers the parts)
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Outputs, Signals
from jaxdistill.losses.relations import crd

KEY = jax.random.key(0)
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "relations.npz")
SPEC = "crd(records=13, negatives=8, width=4)"
TERM = build_loss(SPEC)
initial = jax.jit(lambda seen: TERM.init(KEY, seen))
step_of = jax.jit(lambda params, state, seen, key: TERM.apply(params, state, seen, key=key))
draw_negatives = jax.jit(crd.draw_negatives, static_argnums=(2, 3))


def of_rows(student, teacher, index, mask=None) -> Signals:
    """Build signals with these embeddings of student and teacher and these record numbers."""
    seen, rows = signals(batch=(len(index),)), [jnp.asarray(x) for x in (student, teacher)]
    mask = jnp.ones(len(index)) if mask is None else jnp.asarray(mask)
    batch = {"index": jnp.asarray(index, jnp.int32)}
    return replace(
        seen, student=Outputs(None, (), (), rows[0]), teachers=(Outputs(None, (), (), rows[1]),), batch=batch, mask=mask
    )


# The published code


def published_params(precision: str, prefix: str = "params") -> dict:
    sides = {"student": "embed_s", "teacher": "embed_t"}
    take = lambda side, leaf: np.asarray(GOLDEN[f"crd/{prefix}/{sides[side]}.linear.{leaf}"].T, precision)
    leaves = {"kernel": "weight", "bias": "bias"}
    return {f"{side}/{ours}": take(side, theirs) for side in sides for ours, theirs in leaves.items()}


def two_steps(module, precision: str, monkeypatch):
    """Yield number, value, gradients and state of two steps of `module.crd`, with the published code's negatives."""
    term = module.crd(13, negatives=8, width=4)
    params = published_params(precision)
    banks = {"student/bank": GOLDEN["crd/0/bank1"], "teacher/bank": GOLDEN["crd/0/bank2"]}
    state = {name: jnp.asarray(np.asarray(bank, precision)) for name, bank in banks.items()}
    state |= dict.fromkeys(("student/log_z", "teacher/log_z"), jnp.full((), -jnp.inf, precision))
    for step in (1, 2):
        negatives = jnp.asarray(GOLDEN[f"crd/{step}/negatives"], jnp.int32)
        monkeypatch.setattr(module, "draw_negatives", lambda *_, drawn=negatives: drawn)
        student, teacher = (np.asarray(GOLDEN[f"crd/{step}/{side}"], precision) for side in ("student", "teacher"))

        def loss(student, teacher, params, step=step, state=state):
            seen = of_rows(student, teacher, GOLDEN[f"crd/{step}/index"])
            return term.apply(params, state, seen, key=KEY)

        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        (value, state), slopes = both(student, teacher, params)
        yield step, *jax.device_get((value, slopes, state))


@pytest.mark.parametrize("precision", ["float64", slow("float32")])
def test_two_steps_equal_the_published_code_banks_and_z_included(precision, monkeypatch):
    tolerance = 1e-12 if precision == "float64" else 1e-5
    with jax.enable_x64(precision == "float64"):
        for step, value, slopes, state in two_steps(crd, precision, monkeypatch):
            said = lambda name, step=step: GOLDEN[f"crd/{step}/{name}"]
            close = lambda a, b: assert_close(a, b, rtol=tolerance, atol=tolerance)
            close(value / said("value"), 1.0)
            size = np.abs(said("grad/student")).max()
            close(slopes[0] / size, said("grad/student") / size)
            close(slopes[1] / size, said("grad/teacher") / size)
            wanted = published_params(precision, f"{step}/grad")
            close({name: x / size for name, x in slopes[2].items()}, {name: x / size for name, x in wanted.items()})
            close((state["student/bank"], state["teacher/bank"]), (said("bank1"), said("bank2")))
            log_z = np.log(said("z"))
            close((state["student/log_z"] / log_z[0], state["teacher/log_z"] / log_z[1]), (1.0, 1.0))


FIRST = "        values, new_state = jnp.zeros(len(index)), {}\n"
MOVED = "momentum * bank[index] + (1 - momentum) * rows"
EARLY = "update_bank(state[f'{s}/bank'], rows[s], index, valid, momentum)"
TWINS = {
    "Z of every batch": ("jnp.isneginf(state[", "jnp.ones_like(state["),
    "Z with a gradient": ("jax.lax.stop_gradient(", "("),
    "Z over the wrong axis": ("jax.nn.logsumexp(scores, axis=1)", "jax.nn.logsumexp(scores, axis=0)[: len(valid)]"),
    "negatives averaged": ("jnp.sum(negatives, axis=1)", "jnp.mean(negatives, axis=1)"),
    "its own bank": ('state[f"{other}/bank"], candidates', 'state[f"{side}/bank"], candidates'),
    "written before it is read": (FIRST, f"{FIRST}        state |= {{f'{{s}}/bank': {EARLY} for s in SIDES}}\n"),
    "banks not of unit length": (f"unit({MOVED})", MOVED),
    "a longer memory": (MOVED, MOVED.replace("(1 - momentum)", "0.1").replace("momentum *", "0.9 *")),
}


@pytest.mark.sampled("written before*", "Z of every*", "its own bank")
@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_twin_is_caught_within_two_steps(twin, monkeypatch):
    old, new = TWINS[twin]
    source = inspect.getsource(crd)
    assert source.count(old) == 1, f"crd.py no longer says {old!r}"
    module = types.ModuleType(crd.__name__)
    with runs.registries_as_found():
        exec(compile(source.replace(old, new), crd.__file__, "exec"), module.__dict__)
    apart = lambda a, b: float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())
    furthest = {}
    for step, value, slopes, state in two_steps(module, "float32", monkeypatch):
        said = lambda name, step=step: GOLDEN[f"crd/{step}/{name}"]
        furthest[step] = max(
            apart(value, said("value")),
            apart(slopes[0], said("grad/student")),
            apart(state["student/bank"], said("bank1")),
            apart(state["teacher/bank"], said("bank2")),
        )
    assert max(furthest.values()) > 1e-2
    # this mistake alone shows only in step 2, since step 1 computes Z from its batch in any case
    assert (furthest[1] < 1e-4) == (twin == "Z of every batch")


# A step restated


def restated(params, state, student, teacher, index, negatives, counts):
    """Return the loss of a step, and log Z and the banks after it, by loops in float64 over the unmasked rows."""
    f64 = lambda tree: {name: np.asarray(x, np.float64) for name, x in tree.items()}
    params, state, sides = f64(params), f64(state), ("student", "teacher")
    rows = {}
    for side, x in zip(sides, (student, teacher), strict=True):
        rows[side] = np.nan_to_num(x) @ params[f"{side}/kernel"] + params[f"{side}/bias"]
        rows[side] /= np.linalg.norm(rows[side], axis=1, keepdims=True)
    records, found, new = len(state["student/bank"]), 0.0, {}
    noise, valid = negatives.shape[1] / records, np.flatnonzero(counts)
    for side, other in itertools.permutations(sides):
        bank = state[f"{other}/bank"]
        scores = {b: np.exp(bank[[index[b], *negatives[b]]] @ rows[side][b] / 0.07) for b in valid}
        z = records * np.mean(list(scores.values()))
        z = np.exp(state[f"{side}/log_z"]) if np.isfinite(state[f"{side}/log_z"]) else z
        for p in (score / z for score in scores.values()):
            found -= (np.log(p[0] / (p[0] + noise + 1e-7)) + np.log(noise / (p[1:] + noise + 1e-7)).sum()) / len(valid)
        new[f"{side}/log_z"] = np.log(z)
    for side in sides:
        bank = state[f"{side}/bank"].copy()
        for b in valid:  # each row updates the bank as it was before the batch; a record's last row is kept
            moved = 0.5 * state[f"{side}/bank"][index[b]] + 0.5 * rows[side][b]
            bank[index[b]] = moved / np.linalg.norm(moved)
        new[f"{side}/bank"] = bank
    return found, new


def test_padding_and_repeated_records():
    """Check two steps with two rows of record 3, and with padded rows that hold NaN and name records 3 and 5."""
    draw = np.random.default_rng(0)
    student, teacher = draw.normal(size=(6, 5)), draw.normal(size=(6, 7))
    index, counts = np.array([3, 5, 3, 1, 3, 5]), np.array([1, 0, 1, 1, 0, 1])
    student[counts == 0], teacher[counts == 0] = np.nan, np.nan
    seen = of_rows(np.float32(student), np.float32(teacher), index, np.float32(counts))
    params, state = initial(seen)
    params = params | {"student/bias": np.arange(4, dtype=np.float32), "teacher/bias": -np.ones(4, np.float32)}
    for key in (KEY, jax.random.key(1)):
        negatives = np.asarray(draw_negatives(key, np.int32(np.where(counts > 0, index, 0)), 8, 13))
        expected = restated(params, state, student, teacher, index, negatives, counts)
        value, state = step_of(params, state, seen, key)
        assert_close((value, state), expected, rtol=1e-4, atol=1e-5)


def test_with_z_known_the_gradient_is_that_of_the_value_for_the_teacher_too():
    draw = np.random.default_rng(1)
    seen = of_rows(*(np.float32(draw.normal(size=(6, width))) for width in (5, 7)), np.arange(6))
    params, state = initial(seen)
    _, state = step_of(params, state, seen, KEY)
    learned = {"student": seen.student.embedding, "teacher": seen.teachers[0].embedding, "params": params}
    learned = jax.device_get(learned)

    def loss(learned):
        rows = of_rows(learned["student"], learned["teacher"], np.arange(6))
        return TERM.apply(learned["params"], state, rows, key=jax.random.key(1))[0]

    loss, slope = jax.jit(loss), jax.device_get(jax.jit(jax.grad(loss))(learned))
    for role in learned:
        along = jax.tree.map(lambda x: np.float32(draw.normal(size=x.shape)), learned[role])
        moved = lambda size, r=role, d=along: {**learned, r: jax.tree.map(lambda x, y: x + size * y, learned[r], d)}
        measured = (float(loss(moved(1e-3))) - float(loss(moved(-1e-3)))) / 2e-3
        assert_close(sum(jax.tree.leaves(jax.tree.map(np.vdot, slope[role], along))), measured, rtol=2e-2, atol=2e-2)
        assert abs(measured) > 0.1


def test_others_are_drawn_evenly_and_are_never_the_record_itself():
    index = np.int32([0, 2, 4])
    drawn = np.asarray(draw_negatives(KEY, index, 4000, 5))
    for own, others in zip((0, 2, 4), drawn, strict=True):
        known, often = np.unique(others, return_counts=True)
        assert known.tolist() == [n for n in range(5) if n != own]
        assert np.abs(often / 1000 - 1).max() < 0.15  # 5 standard deviations
    assert (drawn[0] != drawn[1]).any()
    assert (np.asarray(draw_negatives(jax.random.key(1), index, 4000, 5)) != drawn).any()


def test_too_few_records_are_not_hidden():
    seen = of_rows(np.ones((3, 5), np.float32), np.ones((3, 7), np.float32), [0, 12, 13])
    assert np.isnan(step_of(*initial(seen), seen, KEY)[0])


@pytest.mark.parametrize(
    "argument", ["records=1", "negatives=0", "width=0", "temperature=0.0", "momentum=1.0", "momentum=-0.1"]
)
def test_numbers_out_of_range_are_refused(argument):
    spec = f"crd({argument})" if argument.startswith("records") else f"crd(records=9, {argument})"
    with pytest.raises(ConfigError, match="records must be 2 or more"):
        build_loss(spec)


def test_records_without_numbers_are_refused():
    seen = of_rows(np.ones((3, 5), np.float32), np.ones((3, 7), np.float32), [0, 1, 2])
    with pytest.raises(ValueError, match="no field 'index'"):
        step_of(*initial(seen), replace(seen, batch={}), KEY)


def retrieved(own_number: bool) -> float:
    """Train a student by `crd` alone; return how often its embedding is nearest to the teacher's of the same record."""
    draw = np.random.default_rng(0)
    records, steps, size = 48, 500, 16
    seen = draw.normal(size=(records, 12)).astype(np.float32)
    teacher = np.tanh(seen[:, :3] @ draw.normal(size=(3, 6)).astype(np.float32))  # a function of 3 of the 12 features
    term = build_loss(f"crd(records={records}, negatives=24, width=8)")
    rows = np.int32([draw.permutation(records)[:size] for _ in range(steps)])
    named = rows if own_number else np.int32(draw.integers(0, records, rows.shape))
    seen, teacher = jnp.asarray(seen), jnp.asarray(teacher)
    first = jax.jit(lambda: term.init(KEY, of_rows(seen[:size, :5], teacher[:size], range(size))))
    params, state = first()
    learned = {"student": jnp.asarray(np.eye(12, 5, dtype=np.float32)), "terms": params}
    update = optax.adam(0.02)

    def step(carry, turn):
        (learned, state, moments), (number, rows, index) = carry, turn

        def loss(learned):
            batch = of_rows(seen[rows] @ learned["student"], teacher[rows], index)
            return term.apply(learned["terms"], state, batch, key=jax.random.fold_in(KEY, number))

        slope, state = jax.grad(loss, has_aux=True)(learned)
        moved, moments = update.update(slope, moments)
        return (optax.apply_updates(learned, moved), state, moments), None

    start = learned, state, update.init(learned)

    @jax.jit
    def nearest(start):
        (learned, _, _), _ = jax.lax.scan(step, start, (jnp.arange(steps), rows, named))
        project = lambda side, x: crd._project(learned["terms"], side, x)
        return jnp.argmax(project("student", seen @ learned["student"]) @ project("teacher", teacher).T, axis=1)

    return float(np.mean(nearest(start) == np.arange(records)))


def test_a_student_learns_to_know_its_record_if_it_is_told_which():
    """Check that a student learns nothing from random record numbers, the likeliest mistake of a data pipeline."""
    assert retrieved(own_number=True) > 0.6
    assert retrieved(own_number=False) < 0.2


def test_at_a_high_temperature_crd_cannot_tell_the_pairs_apart():
    """Compare with the value of scores that are all equal, by hand: log(1 + k) + k log(1 + 1/k) in two directions."""
    draw, count = np.random.default_rng(0), 8
    seen = of_rows(np.float32(draw.normal(size=(5, 3))), np.float32(draw.normal(size=(5, 6))), range(5))
    term, key = build_loss(f"crd(records=13, negatives={count}, width=4, temperature=1e6)"), jax.random.key(0)
    value, _ = term.apply(*term.init(key, seen), seen, key=key)
    assert_close(value, 2 * (np.log(1 + count) + count * np.log(1 + 1 / count)), rtol=1e-4)
