"""Build the parts of a stage from the spec strings of its config: terms, fusion, optimiser, step and student."""

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
from jaxdistill.core.interfaces import Fusion, Model, Objective, Step, Term
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.registry import Spec
from jaxdistill.core.schedules import Horizon, Scalar, Schedule, as_schedule, resolve
from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.data.text.tokens import Tokenization
from jaxdistill.losses.text.gold import Vocabularies
from jaxdistill.models.build import build_model
from jaxdistill.models.derivatives import with_gradients
from jaxdistill.run.config import Config
from jaxdistill.teachers.teacher import Teacher

# Loads the tokens that the vocabularies of student and teacher share; None: the data have one vocabulary.
SharedVocabularyLoader = Callable[[], SharedVocabulary] | None


class Components(NamedTuple):
    """The components that a stage's spec strings name; building them needs no data.

    terms: loss terms with their weights, by name
    fusion: combines the teachers
    optimizer: updates all roles
    rate: the student's learning rate
    schedules: schedules that are logged beside the losses, by name
    """

    terms: dict[str, WeightedTerm]
    fusion: Fusion
    optimizer: optax.GradientTransformation
    rate: Schedule
    schedules: Mapping[str, Any]

    @property
    def needs(self) -> frozenset[str]:
        """Return everything that the terms need from models, see `Term.needs`."""
        return frozenset[str]().union(*(term.needs for term, _ in self.terms.values()))


class Parts(NamedTuple):
    """The parts of a stage.

    student: the model that is trained
    teachers: its teachers, in the order of the config
    components: terms, fusion, optimiser and schedules
    objective: the weighted sum of terms that is minimised
    step: the training algorithm, one update at a time
    """

    student: Model
    teachers: tuple[Teacher, ...]
    components: Components
    objective: Objective
    step: Step


def build_components(config: Config, horizon: Horizon, tokens: Tokenization | None) -> Components:
    """Build the components that the spec strings of a stage name.

    Args:
        config: config of the stage.
        horizon: steps of the stage, and of an epoch.
        tokens: the tokenization, which knows the tokens that two vocabularies share; None: the data are not text.

    Raises:
        ConfigError: a spec string is wrong; names the path, the value and the cure.
    """
    shared = functools.cache(tokens.shared) if tokens and tokens.shared else None
    terms = {name: _term(entry, f"objective.{name}", name, horizon, shared) for name, entry in config.objective.items()}
    rate = resolve(config.rate, horizon, "rate")
    roles = {role: _role(entry, f"roles.{role}", horizon) for role, entry in config.roles.items()}
    transformation = registry.optimizers.build(config.optimizer, "optimizer")
    weights: dict[str, Any] = {f"weights/{n}": as_schedule(weighted.weight) for n, weighted in terms.items()}
    temperatures: dict[str, Any] = {
        f"temperature/{name}": term.temperature for name, (term, _) in terms.items() if term.temperature
    }
    return Components(
        terms,
        registry.fusions.build(config.fusion, "fusion"),
        optimizer(transformation, rate, config.clip_norm, roles),
        rate,
        {"rate": rate, **weights, **temperatures},
    )


def build_loss(spec: str | Spec, path: str, horizon: Horizon, shared: SharedVocabularyLoader = None) -> Term:
    """Build a loss term. Its arguments may be schedules, or specs of other losses.

    Args:
        spec: such as "kd(temperature=4.0)".
        path: config path of the spec, for error messages.
        horizon: steps of the stage, and of an epoch.
        shared: loads the tokens that the vocabularies of student and teacher share.
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


def _term(entry: Config, path: str, name: str, horizon: Horizon, shared: SharedVocabularyLoader) -> WeightedTerm:
    term = build_loss(entry.term or name, path, horizon, shared)
    term = term._replace(stream=entry.stream) if entry.stream else term
    return WeightedTerm(term, resolve(entry.weight, horizon, f"{path}.weight"))


def _role(entry: Config, path: str, horizon: Horizon) -> tuple[Any, Schedule]:
    transformation = registry.optimizers.build(entry.optimizer, f"{path}.optimizer")
    return transformation, resolve(entry.rate, horizon, f"{path}.rate")


def build_student(config: Config, needs: frozenset[str]) -> Model:
    """Build the student of a stage, with gradient accumulation and the gradients that its terms need."""
    return with_gradients(build_model(config.student.model, "student.model", config.dtype), needs, config.accumulate)


def build_parts(config: Config, components: Components, teachers: Mapping[str, Teacher], horizon: Horizon) -> Parts:
    """Build all parts of a stage.

    Args:
        config: config of the stage.
        components: what its spec strings name, from `build_components`.
        teachers: its teachers, by name.
        horizon: steps of the stage, and of an epoch.

    Raises:
        ConfigError: the step does not accept these parts.
    """
    student, teacher_values = build_student(config, components.needs), tuple(teachers.values())
    combined = objective(components.terms, components.fusion, config.chunks, config.kernels)
    arguments = {
        "student": student,
        "teachers": tuple(teacher.model for teacher in teacher_values),
        "objective": combined,
        "optimizer": components.optimizer,
    }
    step = registry.steps.build(step_spec(config, arguments), "step", schedule_converters(horizon))
    return Parts(student, teacher_values, components, combined, step)


def schedule_converters(horizon: Horizon) -> dict[Any, Callable[[Any, str], Any]]:
    """Return the converters that turn schedule arguments of a step into schedules."""
    return {Scalar: lambda value, where: resolve(value, horizon, where)}


def step_spec(config: Config, arguments: Mapping[str, Any]) -> Spec:
    """Parse the step's spec and add the arguments that the stage supplies.

    Raises:
        ConfigError: the spec in the config already sets one of these arguments.
    """
    spec = registry.parse(config.step, "step")
    if spec.args or set(arguments) & set(spec.kwargs):
        names = ", ".join(arguments)
        raise ConfigError("step", f"{config.step!r}: {names} are set from other config keys; leave them out.")
    return spec._replace(kwargs={**spec.kwargs, **arguments})
