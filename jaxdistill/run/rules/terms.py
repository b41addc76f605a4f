"""Rules about the fusion and the loss terms of a training stage, checked by abstract evaluation (`jax.eval_shape`)."""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core import jaxpr
from jaxdistill.core.errors import ConfigError, message_of, typed_message_of, user_location
from jaxdistill.core.interfaces import Fusion, Objective, Term
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.registry import losses
from jaxdistill.core.spec import nested_specs, parse
from jaxdistill.core.types import NO_OUTPUTS
from jaxdistill.losses import pairs
from jaxdistill.losses.relations.edges import read_graph
from jaxdistill.losses.term import stateless
from jaxdistill.models.abstract import has_pairs
from jaxdistill.run.own_parts import own_parts
from jaxdistill.run.views import KEY, StageView


def fusion_fits(view: StageView) -> None:
    """Require that the fusion, which combines several teachers into one, accepts the outputs of these teachers."""
    if view.teacher_configs:
        term = WeightedTerm(
            stateless(lambda signals: jnp.zeros(signals.mask.shape)), 1.0
        )  # any loss will do: only the fusion is checked
        _try_objective(view, {"any": term}, view.parts.components.fusion, "fusion")


def class_numbers_match(view: StageView) -> None:
    """Require that a graph file of classes gives each class of the data the number that the data give it.

    A name of the graph that is no class of the data, such as a synonym, is not compared.
    """
    numbers = {name: number for number, name in enumerate(view.data.class_names)}
    sections = {"objective": view.config.objective, "task": view.config.task}
    terms = {f"{key}.{name}": entry.term for key, section in sections.items() for name, entry in section.items()}
    terms["step"] = view.config.step  # whose arguments may be losses
    specs = [(path, spec) for path, term in terms.items() if term for spec in nested_specs(parse(term, path))]
    for path, spec in specs:
        names = inspect.signature(losses[spec.name]).parameters if spec.name in losses else {}
        arguments = spec.kwargs | dict(zip(names, spec.args, strict=False))
        file = arguments.get("edges")
        if not isinstance(file, str) or arguments.get("node", "label") != "label":
            continue
        for number, known in enumerate(read_graph(Path(file).expanduser()).names):
            if numbers.get(known, number) != number:
                problem = f"{file!r} names {known!r} as class {number}, and it is class {numbers[known]} of the data"
                raise ConfigError(path, f"{problem}. Write the graph for {', '.join(numbers)[:80]}.")


def terms_have_gradients(view: StageView) -> None:
    """Require that every loss term has a gradient with respect to the student or to the term's own parameters.

    A term that returns integers or booleans, or stops the gradient, would have no effect, and no error would be raised.
    A term of weight 0 needs no gradient, because it is only logged.
    """
    for name, weighted in view.terms.items():
        term = objective({name: weighted}, view.parts.components.fusion)
        signals = {stream: view.signals[stream] for stream in term.streams}
        variables = jax.eval_shape(term.init, KEY, signals)
        slope = functools.partial(_slope, term, name)
        try:
            moves = jaxpr.used_inputs(slope, jax.ShapeDtypeStruct((), jnp.float32), variables, signals, KEY)[0]
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ConfigError(f"objective.{name}", f"has no gradient: {message_of(error)}") from error
        if not moves and not _is_zero(view.config.objective[name].weight):
            problem = "has no gradient: its values do not depend on the student in a way that can be differentiated"
            cure = "Return numbers that are computed from its outputs without rounding, comparing or stop_gradient"
            raise ConfigError(f"objective.{name}", f"{problem}. {cure}, or set weight=0, to log it.")


def masks_are_no_outputs(view: StageView) -> None:
    """Require that no loss term returns other numbers, such as a second array of values, in place of its mask.

    A term returns values, or a pair of values and mask, where values count if the mask is not 0. A mask that compares
    outputs of the models has no gradient with respect to them. If it has one, it was probably not meant as a mask. Only
    losses that the user's own code registers are checked.
    """
    for name, weighted in view.terms.items():
        parts = own_parts({name: view.config.objective[name].term})
        if any(part.startswith(f"{losses.kind} ") for part in parts) and _has_mask_of_outputs(view, name, weighted):
            cure = "Return the values alone, or a mask of booleans, such as mask > 0"
            problem = "returns a pair, whose second part is its mask, and is computed from outputs of the models"
            raise ConfigError(f"objective.{name}", f"{problem}. {cure}.")


def _has_mask_of_outputs(view: StageView, name: str, weighted: WeightedTerm) -> bool:
    """Return True if a loss term returns a mask of floats that has a gradient with respect to the models' outputs."""
    term, stream = objective({name: weighted}, view.parts.components.fusion), weighted.term.stream
    signals = {name: view.signals[name] for name in term.streams}

    def mask(outputs: Any, signals: Any, key: Any) -> Any:
        student, teachers = outputs
        replaced = {**signals, stream: replace(signals[stream], student=student, teachers=teachers)}
        params, state = term.init(key, replaced)
        fused, _ = term.fuse(params, state, replaced[stream], key=key)
        out, _ = weighted.term.apply(params["terms"][name], state["terms"][name], fused, key=key)
        return out[1] if isinstance(out, tuple) else None

    def slopes(weights: Any, outputs: Any, signals: Any, key: Any) -> list[Any]:
        gradients = jax.vjp(lambda outputs: mask(outputs, signals, key), outputs)[1](weights)
        return [x for x in jax.tree.leaves(gradients) if jnp.issubdtype(x.dtype, jnp.floating)]

    outputs = signals[stream].student, signals[stream].teachers
    returned = jax.eval_shape(mask, outputs, signals, KEY)
    if returned is None or not jnp.issubdtype(returned.dtype, jnp.floating):
        return False
    try:
        return jaxpr.used_inputs(slopes, returned, outputs, signals, KEY)[0]
    except (ValueError, TypeError, NotImplementedError):  # a mask without a derivative, such as that of a loop
        return False


def _is_zero(weight: str) -> bool:
    """Return True if the weight of a loss term, as written in the config, is the number 0."""
    try:
        return float(weight) == 0
    except ValueError:
        return False


def _slope(term: Objective, name: str, weight: Any, variables: Any, signals: Any, key: Any) -> list[Any]:
    """Return `weight` times the gradient of a loss term with respect to the student and the term's own parameters.

    The term is the sum of its values. The result is a list of arrays; the student stands for its outputs and parameters
    in each stream.
    """
    params, state = variables

    def value(params: Any, students: Any) -> Any:
        replaced = {
            stream: replace(each, student=students[stream][0], params={**each.params, "student": students[stream][1]})
            for stream, each in signals.items()
        }
        return term.apply(params, state, replaced, key=key)[0][name].sum

    students = {stream: (each.student, each.params["student"]) for stream, each in signals.items()}
    slopes = jax.vjp(value, params, students)[1](weight)
    return [x for x in jax.tree.leaves(slopes) if jnp.issubdtype(x.dtype, jnp.floating)]


def terms_fit(view: StageView) -> None:
    """Require that every loss term can be computed from the outputs of student and teachers.

    If the config sets kernels='pallas', a Pallas kernel must be able to compute the term, too.
    """
    config = view.config
    kernels = (config.chunks, config.kernels) if config.kernels != "xla" else ()
    for name, weighted in view.terms.items():
        _try_objective(view, {name: weighted}, view.parts.components.fusion, f"objective.{name}", kernels)


def terms_of_pairs_read_embeddings(view: StageView) -> None:
    """Require that no loss term reads the logits of a model with two towers, such as CLIP.

    Such logits are no scores of classes: they compare the rows of one batch, and their columns are the texts of the
    batch (under pmap, only the texts on the same device).
    """
    terms = {f"objective.{name}": term for name, (term, *_) in view.terms.items()}
    if selection := view.parts.step.selection:
        terms["step"] = selection.loss
    for path, term in terms.items():
        signals = view.signals.get(term.stream)
        if signals is None or not has_pairs(signals.student):
            continue
        fused = signals.teachers[0] if signals.teachers else NO_OUTPUTS
        try:
            used = jaxpr.used_inputs(functools.partial(_values, term), replace(signals, teacher=fused), KEY)[0]
        except ConfigError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ConfigError(path, typed_message_of(error)) from error
        if any(outputs.logits for outputs in (used.student, *used.teachers, used.teacher) if outputs is not None):
            known = ", ".join(each for each in losses if losses[each].__module__.startswith(pairs.__name__))
            cure = f"Choose {known} or a loss of hidden states"
            problem = "it reads classes, and a model with two towers has none: its logits compare the rows of a batch"
            raise ConfigError(path, f"{problem}. {cure}.")


def _values(term: Term, signals: Any, key: Any) -> Any:
    """Return the values of a loss term, computed with its initial parameters."""
    return term.apply(*term.init(key, signals), signals, key=key)[0]


def text_reductions_have_texts(view: StageView) -> None:
    """Require that a loss term is averaged text by text (`objective.NAME.reduction="text"`) only if it reads texts."""
    for name, (term, _, reduction) in view.terms.items():
        if reduction == "text" and term.stream in view.signals and view.signals[term.stream].mask.ndim < 2:
            cure = "Leave reduction at 'token'"
            problem = f"'text' averages over the tokens of each text, and the records of {term.stream!r} are no texts"
            raise ConfigError(f"objective.{name}.reduction", f"{problem}. {cure}.")


def _try_objective(
    view: StageView, terms: Mapping[str, WeightedTerm], fusion: Fusion, path: str, kernels: tuple[Any, ...] = ()
) -> None:
    """Initialise and apply an objective abstractly, and raise a `ConfigError` if this fails.

    Args:
        view: the training stage.
        terms: loss terms with their weights, by name.
        fusion: combines several teachers into one.
        path: config path of the terms or of the fusion, for the error.
        kernels: (number of chunks, kernel backend), to compute the loss by a kernel too; if empty, no kernel is tried.
    """
    candidate = objective(terms, fusion, *kernels)
    for stream in candidate.streams - set(view.signals):
        raise ConfigError(path, f"reads the stream {stream!r}; add streams.{stream}.split.")
    signals = {stream: view.signals[stream] for stream in candidate.streams}
    try:
        params, state = jax.eval_shape(candidate.init, KEY, signals)
        jax.eval_shape(lambda p, s, x, k: candidate.apply(p, s, x, key=k), params, state, signals, KEY)
        if kernels:
            weights = jax.eval_shape(candidate.weights, jax.ShapeDtypeStruct((), jnp.int32))
            jax.eval_shape(
                lambda p, s, x, w, k: candidate.loss(p, s, x, w, key=k), params, state, signals, weights, KEY
            )
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        if not (isinstance(error, ValueError | TypeError | LookupError | AttributeError) or user_location(error)):
            raise
        unlabelled = [name for name, term in terms.items() if "label" not in view.shapes.get(term.term.stream, "label")]
        if isinstance(error, KeyError | ValueError) and "'label'" in str(error) and unlabelled:
            split = view.data.streams[terms[unlabelled[0]].term.stream].split
            cure = "Train on records with labels, or remove this term"
            raise ConfigError(path, f"reads labels, and the records of {split!r} have none. {cure}.") from None
        raise ConfigError(path, typed_message_of(error)) from error
