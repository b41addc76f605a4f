"""Rules about how the parts of a stage fit together, on shapes alone."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core import jaxpr, registry
from jaxdistill.core.errors import ConfigError, message_of, suggest
from jaxdistill.core.objective import Weighted, objective
from jaxdistill.core.types import Factored, Fusion, Outputs, Variables
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.models.pretrained import form_of_spec
from jaxdistill.run.views import StageView

KEY = jax.eval_shape(lambda: jax.random.key(0))


def student_has_the_classes(view: StageView) -> None:
    """The student has as many classes as the data."""
    _check_classes("student.model", view.config.student.model, view.student, view.data.classes)


def teachers_have_the_classes(view: StageView) -> None:
    """Every teacher has the student's classes, or a map to them, unless a term aligns unlike ones."""
    if any("alignment" in term.needs for term, _ in view.terms.values()):
        return  # such terms say themselves what they cannot compare
    ours = view.student.logits.shape[-1]
    for entry, out in zip(view.entries.values(), view.signals["train"].teachers, strict=True):
        if out.spans is not None:
            continue
        classes = entry.options.get("classes", ())
        if classes and len(classes) != ours:
            cure = "Give a number of the teacher's for each class of the student, -1 for one that it does not know"
            raise ConfigError(
                f"{entry.path}.classes", f"{classes} maps {len(classes)} classes, {ours} are needed. {cure}."
            )
        _check_classes(f"{entry.path}.model", entry.model, out, ours, f", or map them by {entry.path}.classes")


def _check_classes(path: str, spec: str, outputs: Outputs, classes: int | None, cure: str = "") -> None:
    given = outputs.logits.shape[-1]
    if classes is not None and given != classes:
        raise ConfigError(path, f"{spec!r} has {given} classes, {classes} are needed; set classes={classes}{cure}.")


def fusion_fits(view: StageView) -> None:
    """The fusion takes the teachers."""
    if view.entries:
        constant = Weighted(registry.losses.build("cross_entropy", ""), 1.0)
        _try_objective(view, {"cross_entropy": constant}, view.parts.named.fusion, "fusion")


def terms_fit(view: StageView) -> None:
    """Every term takes student and teachers, and the kernel takes the term where one is asked for."""
    config = view.config
    kernels = (config.chunks, config.kernels) if config.kernels != "xla" else ()
    for name, weighted in view.terms.items():
        _try_objective(view, {name: weighted}, view.parts.named.fusion, f"objective.{name}", kernels)


def _try_objective(
    view: StageView, terms: Mapping[str, Weighted], fusion: Fusion, path: str, kernels: tuple[Any, ...] = ()
) -> None:
    """Initialises and applies an objective of one term on shapes, and by a kernel, which may not take it."""
    tried = objective(terms, fusion, *kernels)
    for stream in tried.streams - set(view.signals):
        raise ConfigError(path, f"reads the stream {stream!r}; add streams.{stream}.split.")
    every = {stream: view.signals[stream] for stream in tried.streams}
    try:
        params, state = jax.eval_shape(tried.init, KEY, every)
        jax.eval_shape(lambda p, s, x, k: tried.apply(p, s, x, key=k), params, state, every, KEY)
        if kernels:
            weights = jax.eval_shape(tried.weights, jax.ShapeDtypeStruct((), jnp.int32))
            jax.eval_shape(lambda p, s, x, w, k: tried.loss(p, s, x, w, key=k), params, state, every, weights, KEY)
    except (ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        raise ConfigError(path, message_of(error)) from error


def evaluated_layers_exist(view: StageView) -> None:
    """Layers whose CKA is measured exist in the student and in the first teacher."""
    teachers = view.signals["train"].teachers
    for pair in view.config.evaluate.layers if teachers else ():
        for layer, outputs, whose in zip(pair, (view.student, teachers[0]), ("student", "teacher"), strict=True):
            count = len(outputs.hidden_states)
            if not -count <= layer < count:
                it_has = f"it has layers 0 (the embedding) to {count - 1}"
                cure = it_has if count else "it returns none; set evaluate.layers=()"
                raise ConfigError("evaluate.layers", f"{pair}: the {whose} has no layer {layer}; {cure}.")


def initialised_here(view: StageView, name: str) -> bool:
    """Whether a teacher begins as the student does, because the step trains it."""
    entry = view.entries[name]
    trained = list(view.entries).index(name) in view.parts.step.trained_teachers
    return trained and not (entry.checkpoint or entry.steps or entry.options.get("cache"))


def teachers_have_values(view: StageView) -> None:
    """Every teacher has values to begin with: a checkpoint, a stage that trains it, a cache, or the step."""
    for name, teacher in zip(view.entries, view.parts.teachers, strict=True):
        if not (teacher.has_values or initialised_here(view, name)):
            cure = f"Set {teacher.path}.checkpoint to the folder of a run, or {teacher.path}.steps to train it here."
            raise ConfigError(teacher.path, f"has neither a checkpoint nor steps. {cure}")


def teachers_can_follow_the_step(view: StageView) -> None:
    """A teacher that the step changes, or queries on records that it makes, has no option against it."""
    step, spec = view.parts.step, view.config.step
    for name, entry in view.entries.items():
        if step.own and (lack := entry.lacks("new_records")):
            raise ConfigError(
                f"{entry.path}.{lack[0]}", f"{spec!r} makes records of its own, and {lack[1]}. Leave it out."
            )
        trained = bool(step.evolve_teachers) or initialised_here(view, name)
        if trained and (lack := entry.lacks("learning")):
            raise ConfigError(f"{entry.path}.{lack[0]}", f"{spec!r} trains teachers, and {lack[1]}. Leave it out.")


def step_streams_exist(view: StageView) -> None:
    """The streams that the step reads are in the config."""
    for stream in sorted(view.parts.step.streams - set(view.data.streams)):
        raise ConfigError("streams", f"{view.config.step!r} reads the stream {stream!r}; add streams.{stream}.split.")


def gate_is_trained_by_the_step(view: StageView) -> None:
    """A gate is trained by a step that routes, and such a step has a gate."""
    config, fusion, step = view.config, view.parts.named.fusion, view.parts.step
    if fusion.by_step and view.entries and not step.gates:
        cure = "Set step='routing()', with a stream of labelled records for it"
        raise ConfigError("step", f"{config.step!r} would train {config.fusion!r} by the loss that it weighs. {cure}.")
    if step.gates and not fusion.by_step:
        raise ConfigError("step", f"{config.fusion!r} learns nothing from {config.step!r}; set fusion='gate()'.")


def _by_kernel(view: StageView) -> bool:
    config = view.config
    return config.kernels != "xla" and config.chunks > 1 and isinstance(view.student.logits, Factored)


def step_begins(view: StageView) -> None:
    """The step initialises, every role with an optimiser is one that it trains, and a kernel computes its terms.

    Traced only where a config chooses something that can be wrong: an abstract trace takes a second.
    """
    config, step = view.config, view.parts.step
    chosen = config.roles or _by_kernel(view) or registry.parse(config.step, "step").kwargs
    if not (chosen or step.evolve_teachers or step.streams > view.parts.objective.streams):
        return
    frozen = tuple(
        Variables(*jax.eval_shape(teacher.model.init, KEY, view.shapes["train"])) for teacher in view.parts.teachers
    )
    rows = {stream: view.shapes[stream] for stream in step.streams}
    try:
        state = jax.eval_shape(step.init, KEY, frozen, rows)
        kernels = (
            jaxpr.count(jax.make_jaxpr(step.update)(state, frozen, rows).jaxpr, "pallas_call")
            if _by_kernel(view)
            else 1
        )
    except (ValueError, TypeError) as error:
        raise ConfigError("step", message_of(error)) from error
    if not kernels:
        why = f"{config.step!r} does not take the gradient of all terms of a factored head at once"
        raise ConfigError("kernels", f"{config.kernels!r} would change nothing: {why}. Set it to 'xla'.")
    for entry in view.entries.values():
        if "teachers" in state.params and (lack := entry.lacks("learning")):
            raise ConfigError(
                f"{entry.path}.{lack[0]}", f"{config.step!r} trains teachers, and {lack[1]}. Leave it out."
            )
    for role in config.roles:
        if role not in state.params:
            raise ConfigError(f"roles.{role}", f"the step has no role {role!r}. {suggest(role, state.params)}")


def activations_are_constrained(view: StageView) -> None:
    """A model that is trained on all three axes constrains its activations: one constraint for each hidden state.

    One that never calls `by_rows` got gradients wrong by 0.1 on a (2, 2, 2) mesh, without an error; with one of
    the axes at 1 it was right.
    """
    if min(view.mesh.shape.values()) == 1:
        return
    model, rows = view.parts.student, view.shapes["train"]
    out, variables = abstract_outputs(model, "student.model", rows)
    with jax.set_mesh(view.mesh):
        apply = lambda v, b, k: model.apply(v.params, v.state, b, train=True, key=k)[0]
        traced = jax.make_jaxpr(apply)(variables, rows, KEY)
    found, needed = jaxpr.count(traced.jaxpr, "sharding_constraint"), max(1, len(out.hidden_states))
    if found < needed:
        cure = "Pass each layer's activations through jaxdistill.by_rows, or set one axis of the mesh to 1."
        said = f"constrains {found} of its {needed} activations: its gradients may be silently wrong here."
        raise ConfigError("student.model", f"{said} {cure}")


def tensor_divides_models(view: StageView) -> None:
    """The axis tensor divides what it splits of every pretrained architecture: heads and vocabulary.

    A model with rules of its own is not checked.
    """
    tensor = view.mesh.shape["tensor"]
    beside = {
        f"{entry.path}.model": (entry.model, entry.rules) for entry in view.entries.values() if not entry.devices()
    }
    models = {"student.model": (view.config.student.model, view.config.student.rules), **beside}
    for path, (spec, rules) in models.items():
        form = form_of_spec(spec, path) if tensor > 1 and not rules else None
        for name in ("heads", "kv_heads", "vocabulary"):
            size = form.arguments.get(name) if form else None
            if size and size % tensor:
                cure = f"Choose a divisor of {size}, and more of mesh.fsdp"
                raise ConfigError("mesh.tensor", f"{tensor} does not divide {name}={size} of {path}. {cure}.")
