"""Build the parts of a training stage from its config: loss terms, fusion of teachers, optimiser, step and student.

A config names a part by a spec string, such as "kd(temperature=4.0)": a registered function with its arguments.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

import jaxdistill.compress.cut
import jaxdistill.fusion
import jaxdistill.losses
import jaxdistill.models
import jaxdistill.steps  # noqa: F401  (importing registers the parts)
from jaxdistill.compress.aware import Quantizer
from jaxdistill.compress.masks import Pruner
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Fusion, Model, Objective, Step, Term
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import freeze, optimizer
from jaxdistill.core.schedules import Horizon, Scalar, Schedule, as_schedule, resolve
from jaxdistill.core.spec import Spec, parse
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
    """The parts of a training that can be built without data or models.

    terms: loss terms with their weights, by name
    fusion: combines the outputs of several teachers into the outputs of one
    optimizer: optax transformation that updates all parameters: those of the student, of loss terms (such as
        projectors) and of the fusion (such as a gate, a network that weights teachers)
    rate: schedule of the student's learning rate
    role_rates: schedules of the learning rates of those roles (groups of parameters, such as `fusion`) that have their
        own, by role
    schedules: schedules of learning rate, loss weights and temperatures by name, logged beside the losses
    """

    terms: dict[str, WeightedTerm]
    fusion: Fusion
    optimizer: optax.GradientTransformation
    rate: Schedule
    role_rates: Mapping[str, Schedule]
    schedules: Mapping[str, Any]

    @property
    def needs(self) -> frozenset[str]:
        """Return the union of `Term.needs` (requirements such as "teacher" or "input_gradients") of all loss terms."""
        return frozenset[str]().union(*(term.needs for term, *_ in self.terms.values()))


class Parts(NamedTuple):
    """The objects that train one model: networks, loss and training algorithm, but no data.

    student: the model that is trained; if a teacher of the run is trained, this teacher
    teachers: the teachers that the model learns from, in config order; an empty tuple if it is trained without teachers
    components: loss terms, fusion of teachers, optimiser and schedules
    objective: the weighted sum of the loss terms, which is minimised
    step: the training algorithm, one update at a time
    """

    student: Model
    teachers: tuple[Teacher, ...]
    components: Components
    objective: Objective
    step: Step


def build_components(config: Config, horizon: Horizon, tokens: Tokenization | None) -> Components:
    """Build the loss terms, the fusion of teachers, the optimiser and the schedules for the training of one model.

    Args:
        config: config of this training.
        horizon: length of the training, in steps and in steps per epoch, on which schedules depend.
        tokens: how texts are converted to tokens, or None if the data are not text. If student and teacher have
            different tokenizers, loss terms get the tokens that both vocabularies contain.

    Raises:
        ConfigError: a spec string, such as "kd(temperature=4.0)", is wrong; the message names key, value and cure.
    """
    shared = functools.cache(tokens.shared) if tokens and tokens.shared else None
    terms = {name: _term(entry, f"objective.{name}", name, horizon, shared) for name, entry in config.objective.items()}
    rate = resolve(config.rate, horizon, "rate")
    roles = {role: _role(entry, f"roles.{role}", horizon) for role, entry in config.roles.items()}
    transformation = registry.optimizers.build(config.optimizer, "optimizer")
    weights: dict[str, Any] = {f"weights/{n}": as_schedule(weighted.weight) for n, weighted in terms.items()}
    temperatures: dict[str, Any] = {
        f"temperature/{name}": each.term.temperature for name, each in terms.items() if each.term.temperature
    }
    whole, pruner = optimizer(transformation, rate, config.clip_norm, roles), build_pruner(config)
    return Components(
        terms,
        registry.fusions.build(config.fusion, "fusion"),
        pruner.optimizer(whole, config.steps) if pruner else whole,
        rate,
        {role: role_rate for role, (_, role_rate) in roles.items()},
        {"rate": rate, **weights, **temperatures},
    )


def build_loss(spec: str | Spec, path: str, horizon: Horizon, shared: SharedVocabularyLoader = None) -> Term:
    """Build a loss term from its spec: the name of a registered loss with arguments, such as "kd(temperature=4.0)".

    An argument may itself be the spec of a schedule or of another loss.

    Args:
        spec: the spec, as a string or parsed.
        path: config key of the spec, such as "objective.kd", for error messages.
        horizon: length of the training, in steps and in steps per epoch, on which schedules depend.
        shared: function that loads the tokens which the vocabularies of student and teacher share; None if student and
            teacher have the same vocabulary, or the data are not text.
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
    term_path = f"{path}.term" if entry.term else path
    term = build_loss(entry.term or name, term_path, horizon, shared)
    term = term._replace(stream=entry.stream) if entry.stream else term
    return WeightedTerm(term, resolve(entry.weight, horizon, f"{path}.weight"), entry.reduction)


def _role(entry: Config, path: str, horizon: Horizon) -> tuple[Any, Schedule]:
    transformation = registry.optimizers.build(entry.optimizer, f"{path}.optimizer")
    return transformation, resolve(entry.rate, horizon, f"{path}.rate")


def build_student(config: Config, needs: frozenset[str]) -> Model:
    """Build the student's model, with pruning masks and quantisation-aware training if the config sets them.

    The model runs in microbatches, and also returns the gradients that loss terms match.

    Args:
        config: config of the training; `config.accumulate` is the number of microbatches in a batch.
        needs: requirements of the loss terms, of which only "input_gradients" and "state_gradients" (gradients with
            respect to the input and to the hidden states) matter here.
    """
    model, quantizer = build_model(config.student.model, "student.model", config.dtype), build_quantizer(config)
    if pruner := build_pruner(config):
        model = pruner.wrap(model)
    if quantizer:
        model = quantizer.wrap(model, config.steps * config.accumulate)  # each microbatch is a call
    return with_gradients(model, needs, config.accumulate)


def build_quantizer(config: Config) -> Quantizer | None:
    """Build the quantiser for quantisation-aware training of the student.

    Return None if the config sets no quantiser, so that the student is trained in floating point.

    Args:
        config: config of the training.

    Raises:
        ConfigError: the config key `student.quantized` is wrong.
    """
    text = config.student.quantized
    return registry.quantizers.build(text, "student.quantized") if text else None


def build_pruner(config: Config) -> Pruner | None:
    """Build the pruner, which sets weights of the student to zero during training (unstructured pruning).

    Return None if the config sets no pruning.

    Args:
        config: config of the training.

    Raises:
        ConfigError: the config key `student.masks` is wrong.
    """
    text = config.student.masks
    return registry.masks.build(text, "student.masks") if text else None


def build_parts(config: Config, components: Components, teachers: Mapping[str, Teacher], horizon: Horizon) -> Parts:
    """Build the student's network, the weighted sum of the loss terms and the training algorithm.

    Args:
        config: config of the training.
        components: loss terms, fusion of teachers, optimiser and schedules, from `build_components`.
        teachers: the teachers that the student learns from, by name.
        horizon: length of the training, in steps and in steps per epoch, on which schedules depend.

    Returns:
        The new objects, together with `components` and `teachers`.

    Raises:
        ConfigError: the training algorithm (config key `step`) does not accept these objects.
    """
    student, teacher_values = build_student(config, components.needs), tuple(teachers.values())
    combined = objective(components.terms, components.fusion, config.chunks, config.kernels)
    arguments = {
        "student": student,
        "teachers": tuple(teacher.model for teacher in teacher_values),
        "objective": combined,
        "optimizer": freeze(components.optimizer, "student", student.locked),
    }
    step = registry.steps.build(step_spec(config, arguments), "step", step_converters(horizon))
    return Parts(student, teacher_values, components, combined, step)


def step_converters(horizon: Horizon) -> dict[Any, Callable[[Any, str], Any]]:
    """Return the converters with which `registry.steps.build` makes schedules and loss terms from config values.

    They apply to arguments of a training algorithm that may be a number or a schedule (type `Scalar`), and to those
    that are loss terms (type `Term`).

    Args:
        horizon: length of the training, in steps and in steps per epoch, on which schedules depend.

    Returns:
        `{type: (value, config key) -> schedule or term}`; the value is a number, or a spec such as
        "linear(start=8, end=2)" or "contrastive()".
    """
    return {
        Scalar: lambda value, where: resolve(value, horizon, where),
        Term: lambda value, where: build_loss(value, where, horizon),
    }


def step_spec(config: Config, arguments: Mapping[str, Any]) -> Spec:
    """Parse the spec string of the training algorithm, such as "offline()", and add arguments that are Python objects.

    Args:
        config: config of the training.
        arguments: the arguments to add, by name: student, teachers, objective, optimizer.

    Raises:
        ConfigError: the spec string already sets one of these arguments, or has an argument without a name.
    """
    spec = parse(config.step, "step")
    if spec.args or set(arguments) & set(spec.kwargs):
        names = ", ".join(arguments)
        raise ConfigError("step", f"{config.step!r}: {names} are set from other config keys; leave them out.")
    return spec._replace(added=arguments)
