"""The parts of a stage from the spec strings of its config: terms, fusion, optimiser, step, student."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

import jaxdistill.fusion
import jaxdistill.losses
import jaxdistill.models
import jaxdistill.steps  # noqa: F401  (importing registers the parts)
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.objective import Weighted, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.registry import Spec
from jaxdistill.core.schedules import Horizon, Scalar, Schedule, as_schedule, resolve
from jaxdistill.core.types import Fusion, Model, Objective, Step, Term
from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.data.text.tokens import Tokenization
from jaxdistill.losses.text.gold import Vocabularies
from jaxdistill.models.build import build_model
from jaxdistill.models.derivatives import with_needed
from jaxdistill.run.config import Config
from jaxdistill.teachers.teacher import Teacher

# What the vocabularies of student and teacher share, where the data know it.
Sharing = Callable[[], SharedVocabulary] | None


class Named(NamedTuple):
    """What the spec strings of a stage name, before anything is known of its data.

    terms: with their weights, by name
    fusion: of the teachers
    optimizer: of all roles
    rate: the student's learning rate
    schedules: what the log shows beside the losses, by name
    """

    terms: dict[str, Weighted]
    fusion: Fusion
    optimizer: optax.GradientTransformation
    rate: Schedule
    schedules: Mapping[str, Any]

    @property
    def needs(self) -> frozenset[str]:
        """What the terms need of models, see `Term.needs`."""
        return frozenset[str]().union(*(term.needs for term, _ in self.terms.values()))


class Parts(NamedTuple):
    """The parts of a stage.

    student: the model that is trained
    teachers: whom it learns from, in the order of the config
    named: terms, fusion, optimiser and schedules
    objective: what is minimised
    step: the algorithm of an update
    """

    student: Model
    teachers: tuple[Teacher, ...]
    named: Named
    objective: Objective
    step: Step


def name_parts(config: Config, horizon: Horizon, tokens: Tokenization | None) -> Named:
    """Builds what the spec strings of a stage name.

    Args:
        config: of the stage.
        horizon: steps of the stage, and of an epoch.
        tokens: how texts become arrays, which knows what vocabularies share.

    Raises:
        ConfigError: naming the path, the value and the cure.
    """
    shared = functools.cache(tokens.shared) if tokens and tokens.shared else None
    terms = {name: _term(entry, f"objective.{name}", name, horizon, shared) for name, entry in config.objective.items()}
    rate = resolve(config.rate, horizon, "rate")
    roles = {role: _role(entry, f"roles.{role}", horizon) for role, entry in config.roles.items()}
    transformation = registry.optimizers.build(config.optimizer, "optimizer")
    weights: dict[str, Any] = {f"weights/{n}": as_schedule(weighted.weight) for n, weighted in terms.items()}
    softened: dict[str, Any] = {
        f"temperature/{name}": term.temperature for name, (term, _) in terms.items() if term.temperature
    }
    return Named(
        terms,
        registry.fusions.build(config.fusion, "fusion"),
        optimizer(transformation, rate, config.clip_norm, roles),
        rate,
        {"rate": rate, **weights, **softened},
    )


def build_loss(spec: str | Spec, path: str, horizon: Horizon, shared: Sharing = None) -> Term:
    """Builds the term of a spec, whose arguments may be schedules, and terms again.

    Args:
        spec: such as "kd(temperature=4.0)".
        path: where the config names it, for messages.
        horizon: steps of the stage, and of an epoch.
        shared: what the vocabularies of student and teacher share.
    """

    def vocabulary(value: Any, where: str) -> SharedVocabulary | None:
        if value is not None:
            raise ConfigError(where, "comes from the tokenizers of data.tokens; leave it out.")
        return shared() if shared else None

    convert: dict[Any, Callable[[Any, str], Any]] = {
        Scalar: lambda value, where: resolve(value, horizon, where),
        Term: lambda value, where: build_loss(value, where, horizon, shared),
        Vocabularies: vocabulary,
    }
    return registry.losses.build(spec, path, convert)


def _term(entry: Config, path: str, name: str, horizon: Horizon, shared: Sharing) -> Weighted:
    term = build_loss(entry.term or name, path, horizon, shared)
    term = term._replace(stream=entry.stream) if entry.stream else term
    return Weighted(term, resolve(entry.weight, horizon, f"{path}.weight"))


def _role(entry: Config, path: str, horizon: Horizon) -> tuple[Any, Schedule]:
    transformation = registry.optimizers.build(entry.optimizer, f"{path}.optimizer")
    return transformation, resolve(entry.rate, horizon, f"{path}.rate")


def build_student(config: Config, needs: frozenset[str]) -> Model:
    """Builds the student of a stage, in its pieces, with the gradients that its terms need."""
    return with_needed(build_model(config.student.model, "student.model", config.dtype), needs, config.accumulate)


def build_parts(config: Config, named: Named, teachers: Mapping[str, Teacher], horizon: Horizon) -> Parts:
    """Builds a stage from what its config names.

    Args:
        config: of the stage.
        named: what its spec strings name.
        teachers: whom it learns from, by name.
        horizon: steps of the stage, and of an epoch.

    Raises:
        ConfigError: the step does not take these parts.
    """
    student, several = build_student(config, named.needs), tuple(teachers.values())
    minimised = objective(named.terms, named.fusion, config.chunks, config.kernels)
    given = {
        "student": student,
        "teachers": tuple(teacher.model for teacher in several),
        "objective": minimised,
        "optimizer": named.optimizer,
    }
    step = registry.steps.build(step_spec(config, given), "step", timed(horizon))
    return Parts(student, several, named, minimised, step)


def timed(horizon: Horizon) -> dict[Any, Callable[[Any, str], Any]]:
    """How arguments of a step that may be schedules become schedules."""
    return {Scalar: lambda value, where: resolve(value, horizon, where)}


def step_spec(config: Config, given: Mapping[str, Any]) -> Spec:
    """The step's spec, with the arguments that a stage gives it.

    Raises:
        ConfigError: the config gives one of these itself.
    """
    spec = registry.parse(config.step, "step")
    if spec.args or set(given) & set(spec.kwargs):
        raise ConfigError("step", f"{config.step!r}: {', '.join(given)} are given by the config; leave them out.")
    return spec._replace(kwargs={**spec.kwargs, **given})
