"""Tests of a user's own losses, steps and models: mistakes in them are refused before anything is trained."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals as drawn
from checks import assert_same
from own_runs import config_of

from jaxdistill import differ
from jaxdistill.core.errors import ConfigError, user_location
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.registry import fusions, losses, models, steps
from jaxdistill.core.types import Outputs
from jaxdistill.losses.term import stateless
from jaxdistill.run.distill import check_config

KEY = jax.random.key(0)
VALUES = {
    "compares": lambda s: jnp.any(s.student.logits > 0, axis=-1),
    "counts": lambda s: jnp.sum(s.student.logits > 0, axis=-1),
    "stops": lambda s: jax.lax.stop_gradient(s.student.logits).sum(-1),
    "constant": lambda s: jnp.ones(s.mask.shape),
    "loops": lambda s: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x - 1, s.student.logits).sum(-1),
    "branches": lambda s: s.student.logits.sum(-1) if s.student.logits[0, 0] > 0 else s.mask,
    "leaves": lambda s: jnp.asarray(np.asarray(s.student.logits)).sum(-1),
    "converts": lambda s: s.student.logits.sum(-1) * float(s.student.logits[0, 0]),
    "selects": lambda s: s.mask * s.student.logits[s.student.logits > 0].sum(),
    "real": lambda s: s.student.logits.sum(-1),
    "decays": lambda s: jax.tree.reduce(lambda a, b: a + jnp.sum(b**2), s.params["student"], 0.0),
}


@pytest.fixture(scope="module", autouse=True)
def _registered():
    for name, values in VALUES.items():

        def factory(values=values):
            return stateless(values)

        factory.__name__ = f"own_{name}"
        losses.register(factory)


@pytest.mark.parametrize("name", ["compares", "counts", "stops", "constant"])
def test_a_loss_without_a_gradient_is_refused(home, name):
    said = "Type-check error whilst" if name in ("compares", "counts") else "has no gradient: its values do not depend"
    with pytest.raises(ConfigError, match=rf"^objective\.own_{name}: {said}"):  # types are checked in tests alone
        check_config(config_of("mlp", home, objective={f"own_{name}": {}}), None)
    if name in ("stops", "constant"):  # a term of weight 0 is only logged
        check_config(config_of("mlp", home, objective={f"own_{name}": {"weight": 0.0}, "kd": {}}), None)


def test_a_loss_that_cannot_be_differentiated_is_refused(home):
    with pytest.raises(ConfigError, match=r"^objective\.own_loops: has no gradient: Reverse-mode differentiation"):
        check_config(config_of("mlp", home, objective={"own_loops": {}}), None)


@pytest.mark.parametrize(
    "name",
    ["branches", "leaves", "converts", "selects"],
)
def test_a_loss_that_leaves_jax_is_told_what_to_write(name, home):
    said = "a value is used in Python or NumPy that is only known when the program runs. Use jnp instead"
    with pytest.raises(ConfigError, match=rf"^objective\.own_{name}: {said}.*test_own_losses.py, line \d+"):
        check_config(config_of("mlp", home, objective={f"own_{name}": {}}), None)


@pytest.mark.parametrize("name", ["real", "decays"])
def test_a_loss_of_outputs_or_of_parameters_has_a_gradient(home, name):
    check_config(config_of("mlp", home, objective={f"own_{name}": {}}), None)


def test_a_step_that_cannot_be_traced_is_refused_before_its_teachers_are_trained(home):
    def forgets(student, teachers, objective, optimizer):
        once = steps["offline"](student, teachers, objective, optimizer)
        return once._replace(update=lambda ts, batch: once.update(ts, (), batch))

    def counts(student, teachers, objective, optimizer):
        once = steps["offline"](student, teachers, objective, optimizer)
        return once._replace(update=lambda ts, frozen, batch: once.update(ts, frozen, {"train": batch["quiz"]}))

    for step, said in ((forgets, r"'forgets\(\)': .*takes 2 positional arguments but 3 were given"), (counts, "quiz")):
        steps.register(step)
        with pytest.raises(ConfigError, match=rf"^step: .*{said}"):
            check_config(config_of("mlp", home, step=f"{step.__name__}()"), None)


def changed(update):
    """Return an own step: offline, but its update returns `update(old state, new state, metrics)`."""

    def own(student, teachers, objective, optimizer):
        once = steps["offline"](student, teachers, objective, optimizer)
        return once._replace(update=lambda ts, frozen, batch: update(ts, *once.update(ts, frozen, batch)))

    own.__name__ = "own_step"
    return own


HALF = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tree)


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (lambda old, new, metrics: new, r"its update returns TrainState; return \(train state, metrics\)"),
        (lambda old, new, metrics: (new, [1]), "its update returns metrics .*; return a dict of means by name"),
        (lambda old, new, metrics: (new, {}), r"its update returns metrics \{\}; return a dict .* among them 'loss'"),
        (lambda old, new, metrics: (new, metrics | {"v": jnp.zeros(3)}), r"returns v=.*; return a Mean\(sum, count\)"),
        (lambda old, new, metrics: (HALF(new), metrics), r"params.* is \[.*\] bfloat16, and it was \[.*\] float32"),
        (lambda old, new, metrics: (replace(new, params={}), metrics), r"params.* is missing, and it was \["),
    ],
)
def test_what_an_own_step_returns_is_checked_before_its_teachers_are_trained(home, update, said):
    steps.register(changed(update))
    with pytest.raises(ConfigError, match=rf"^step: 'own_step\(\)': .*{said}"):
        check_config(config_of("mlp", home, step="own_step()"), None)


def test_an_own_step_that_returns_what_it_should_is_taken(home):
    steps.register(changed(lambda old, new, metrics: (new, metrics)))
    check_config(config_of("mlp", home, step="own_step()"), None)


def own_model(apply=None, init=None):
    made = models["mlp"]((4,), 3)
    return made._replace(apply=apply or made.apply, init=init or made.init)


def logits_of(rows=None):
    """Return a model of one parameter, whose logits have as many rows as the batch, or a fixed number."""
    params = {"scale": jnp.ones(())}

    def apply(params, state, batch, *, train, key):
        count = batch["image"].shape[0] if rows is None else rows
        return Outputs(params["scale"] * batch["image"].reshape(count, -1)[:, :3].astype(jnp.float32)), state

    return own_model(apply, lambda key, batch: (params, {}))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: own_model(lambda *_, **__: jnp.ones((16, 3))), "apply of the model returns ShapeDtypeStruct; return"),
        (lambda: own_model(lambda *_, **__: (jnp.ones((16, 3)), {})), "the model returns ShapeDtypeStruct for a batch"),
        (lambda: own_model(init=lambda *_: {}), r"init of the model returns \{\}; return \(params, state\)"),
        (lambda: 3, "own_net in .*test_own_losses returned 3; return Model, see jaxdistill.core.interfaces.Model"),
        (lambda: logits_of(16), "the model returns 16 rows of logits for a batch of 8 rows"),
    ],
)
def test_what_an_own_model_returns_is_checked_before_its_teachers_are_trained(home, make, said):
    models.register(named("own_net", make))
    changes = {"student": {"model": "own_net()"}, "evaluate": {"every": 2, "batch_size": 8, "layers": ()}}
    with pytest.raises(ConfigError, match=rf"^student\.model: .*{said}"):
        check_config(config_of("mlp", home, **changes), None)


def test_an_own_model_for_batches_of_any_size_is_taken(home):
    models.register(named("own_net", logits_of))
    changes = {"student": {"model": "own_net()"}, "evaluate": {"every": 2, "batch_size": 8, "layers": ()}}
    check_config(config_of("mlp", home, **changes), None)


def named(name, make):
    def factory():
        return make()

    factory.__name__ = name
    return factory


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            lambda s: (s.student.logits.sum(-1), s.teacher.logits.sum(-1)),
            "returns a pair, whose second part is its mask",
        ),
        (lambda s: fails(RuntimeError("by hand")), r"RuntimeError: by hand \(test_own_losses\.py, line \d+\)"),
        (lambda s: fails(KeyError("a")), r"KeyError: 'a' \(test_own_losses"),
        (lambda s: fails(AssertionError()), r"AssertionError \(test_own_losses"),
        (lambda s: fails(SystemExit(3)), r"SystemExit: 3 \(test_own_losses"),
    ],
)
def test_a_mistake_in_an_own_loss_names_the_term_the_type_and_the_line(home, values, said):
    losses.register(named("own_wrong", lambda: stateless(values)))
    with pytest.raises(ConfigError, match=rf"^objective\.own_wrong: .*{said}"):
        check_config(config_of("mlp", home, objective={"own_wrong": {}}), None)


def fails(error):
    raise error


@pytest.mark.parametrize("made", [lambda: lambda signals: signals.mask, lambda: 3])
def test_an_own_loss_is_a_term(home, made):
    losses.register(named("own_wrong", made))
    with pytest.raises(ConfigError, match=r"^objective\.own_wrong.*own_wrong in .*test_own_losses returned .*return T"):
        check_config(config_of("mlp", home, objective={"own_wrong": {}}), None)


def of_two_teachers(home, own, term):
    losses.register(named("own_plain", lambda: stateless(own)))
    teachers = {name: {"model": "mlp(widths=(8, 8), classes=3)", "steps": 1} for name in ("one", "two")}
    objective = {"own_plain": {}, "fused": {"term": term}}
    config = config_of("mlp", home, teachers=teachers, fusion="average()", objective=objective)
    return differ(config, student={"model": "mlp(widths=(8, 8), classes=3)"})


def test_terms_of_fused_teachers_beside_an_own_loss_are_taken(home):
    check_config(of_two_teachers(home, VALUES["real"], "fused_hidden()"), None)


def test_a_mask_of_fused_outputs_is_refused(home):
    pair = lambda s: (s.student.logits.sum(-1), s.teacher.logits.sum(-1))
    with pytest.raises(ConfigError, match=r"^objective\.own_plain: returns a pair, whose second part is its mask"):
        check_config(of_two_teachers(home, pair, "fused_hidden()"), None)


@pytest.mark.parametrize(
    "mask", [lambda s: s.student.logits.sum(-1) > 0, lambda s: s.mask, lambda s: s.teacher.logits.sum(-1) > 0]
)
def test_a_mask_that_compares_is_taken(home, mask):
    pair = lambda s: (s.student.logits.sum(-1), mask(s))
    check_config(of_two_teachers(home, pair, "kd()"), None)


def test_an_own_loss_says_what_it_needs_as_a_set(home):
    losses.register(named("own_wrong", lambda: stateless(VALUES["real"])._replace(needs="teacher")))
    with pytest.raises(ConfigError, match=r"^objective\.own_wrong: needs='teacher' is a text. Give frozenset"):
        check_config(config_of("mlp", home, objective={"own_wrong": {}}), None)


def test_a_loss_that_writes_into_its_batch_changes_no_other_term():
    def writes(signals):
        signals.batch["label"] = 0 * signals.batch["label"]
        return signals.student.logits.sum(-1)

    seen = drawn()
    terms = {"writes": WeightedTerm(stateless(writes)), "labels": WeightedTerm(losses.build("cross_entropy", ""))}
    both, alone = (objective(each, fusions.build("single", "")) for each in (terms, {"labels": terms["labels"]}))
    values = [each.apply(*each.init(KEY, {"train": seen}), {"train": seen}, key=KEY)[0] for each in (both, alone)]
    assert_same(values[0]["labels"].sum, values[1]["labels"].sum)


def test_the_file_of_a_callback_that_fails_is_named():
    def fails(x):
        raise ZeroDivisionError("by hand")

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    with pytest.raises(Exception, match="by hand") as error:
        jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(fails, shape, x))(1.0))
    error.value.__traceback__ = None  # a thread of the runtime leaves no traceback
    assert "test_own_losses.py" in user_location(error.value)
