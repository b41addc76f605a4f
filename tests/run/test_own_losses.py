"""Losses of a user's own: those that would change nothing, in silence, are refused before anything is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_runs import config_of

from jaxdistill.core.errors import ConfigError, user_location
from jaxdistill.core.registry import losses, steps
from jaxdistill.losses.term import stateless
from jaxdistill.run.distill import check_config

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
    if name in ("stops", "constant"):  # of weight 0: only logged
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


def test_the_file_of_a_callback_that_fails_is_named():
    def fails(x):
        raise ZeroDivisionError("by hand")

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    with pytest.raises(Exception, match="by hand") as error:
        jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(fails, shape, x))(1.0))
    error.value.__traceback__ = None  # as it comes from a thread of the runtime
    assert "test_own_losses.py" in user_location(error.value)
