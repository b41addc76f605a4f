"""Rules about how the parts of a training stage fit together, checked by abstract evaluation (`jax.eval_shape`)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core import jaxpr, registry
from jaxdistill.core.errors import ConfigError, short_repr, suggest, typed_message_of
from jaxdistill.core.memory import device_memory, require, size_of
from jaxdistill.core.spec import nested_specs, parse
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import Factored, Outputs, TrainState
from jaxdistill.models.abstract import abstract_outputs, embeds, has_pairs
from jaxdistill.models.pretrained import architecture_of_spec
from jaxdistill.run.own_parts import own_parts
from jaxdistill.run.views import KEY, StageView


def student_has_the_classes(view: StageView) -> None:
    """Require that the student has as many classes as the labels of the data.

    If the data set does not say how many classes its labels have, the student needs one for each label that occurs. A
    model without classes, which embeds its input, does not read the labels.
    """
    model, count = view.config.student.model, view.student.logits.shape[-1]
    if has_pairs(view.student) or embeds(view.parts.student, view.shapes["train"]):
        return
    _check_classes("student.model", model, view.student, view.data.classes)
    for name, description in {**view.data.descriptions, "test": view.data.test_description}.items():
        largest = description.largest_label
        if largest is not None and largest >= count:
            problem = f"{model!r} has {count} classes, and the split {name!r} has a label {largest}"
            raise ConfigError("student.model", f"{problem}; set classes={largest + 1}, or correct the labels.")


def teachers_have_the_classes(view: StageView) -> None:
    """Require that every teacher has as many classes as the student, or a map to the student's classes.

    The map is the config key `teachers.NAME.classes`. A teacher with another tokenizer, whose vocabulary is aligned
    with the student's, is not checked.
    """
    if any("alignment" in term.needs for term, *_ in view.terms.values()):
        return  # such terms check the classes themselves
    needed = view.student.logits.shape[-1]
    for teacher, out in zip(view.teacher_configs.values(), view.signals["train"].teachers, strict=True):
        if has_pairs(out) != has_pairs(view.student):
            one, other = ("two towers", "none") if has_pairs(out) else ("one embedding or classes", "two towers")
            cure = "Give both two towers, by towers(...), clip(...), siglip(...) or siamese(...), or neither"
            raise ConfigError(f"{teacher.path}.model", f"it has {one}, and the student has {other}. {cure}.")
        if has_pairs(out):
            continue
        if out.spans is not None:
            continue
        count, classes = out.logits.shape[-1], teacher.class_map
        if count != needed and not classes and embeds(view.parts.student, view.shapes["train"]):
            problem = f"it returns {count} numbers, and the student, which has no classes, an embedding of {needed}"
            raise ConfigError(f"{teacher.path}.model", f"{problem}. Give both one width.")
        if classes and max(classes) < 0:
            cure = "Give the teacher's number of at least one class, or leave the teacher out"
            raise ConfigError(f"{teacher.path}.classes", f"{classes}: the teacher has none of the classes. {cure}.")
        if classes and len(classes) != needed:
            cure = "For each class of the student give its number in the teacher, or -1 if the teacher lacks it"
            raise ConfigError(
                f"{teacher.path}.classes", f"{classes} maps {len(classes)} classes, {needed} are needed. {cure}."
            )
        _check_classes(
            f"{teacher.path}.model",
            teacher.model,
            out,
            needed,
            f", or map them by {teacher.path}.classes",
        )


def _check_classes(path: str, spec: str, outputs: Outputs, classes: int | None, cure: str = "") -> None:
    count = outputs.logits.shape[-1]
    if classes is not None and count != classes:
        raise ConfigError(path, f"{spec!r} has {count} classes, {classes} are needed; set classes={classes}{cure}.")


def evaluated_layers_exist(view: StageView) -> None:
    """Require that student and first teacher have the hidden layers whose similarity (CKA) is evaluated."""
    teachers = view.signals["train"].teachers
    for pair in view.config.evaluate.layers if teachers else ():
        for layer, outputs, model in zip(pair, (view.student, teachers[0]), ("student", "teacher"), strict=True):
            count = len(outputs.hidden_states)
            if not -count <= layer < count:
                known = f"it has layers 0 (the embedding) to {count - 1}"
                cure = known if count else "it returns no hidden states; set evaluate.layers=()"
                raise ConfigError("evaluate.layers", f"{pair}: the {model} has no layer {layer}; {cure}.")


def teachers_have_values(view: StageView) -> None:
    """Require that every teacher has weights, or outputs that are stored in a cache.

    The weights may come from a checkpoint, from a pretrained model, or from training in this run: before the student,
    or together with the student.
    """
    for name, teacher in zip(view.teacher_configs, view.parts.teachers, strict=True):
        if not (teacher.has_values or view.initialised_here(name)):
            cure = f"Set {teacher.path}.checkpoint to the folder of a run, or {teacher.path}.steps to train it here."
            raise ConfigError(teacher.path, f"has neither a checkpoint nor steps. {cure}")


def teachers_support_the_step(view: StageView) -> None:
    """Require that no option of a teacher conflicts with the training algorithm (config key `step`).

    Some algorithms train the teachers, which is impossible on separate devices. Some run the teachers on texts that the
    student generates, for which a cache has no outputs.
    """
    step, spec = view.parts.step, view.config.step
    for teacher in view.teacher_configs.values():
        if step.generated_streams and (lack := teacher.lacks("new_records")):
            raise ConfigError(f"{teacher.path}.{lack[0]}", f"{spec!r} generates records, and {lack[1]}. Leave it out.")
        if (lack := teacher.lacks("learning")) and _trains_teachers(view):
            raise ConfigError(f"{teacher.path}.{lack[0]}", f"{spec!r} trains teachers, and {lack[1]}. Leave it out.")


def _trains_teachers(view: StageView) -> bool:
    step = view.parts.step
    return bool(step.evolve_teachers or step.trained_teachers) or "teachers" in view.train_state.params


def step_streams_exist(view: StageView) -> None:
    """Require that the config defines every data stream (named source of batches) that the step or a loss term reads.

    The step is the training algorithm, such as `offline()`.
    """
    for stream in sorted(view.parts.step.streams - set(view.data.streams)):
        raise ConfigError("streams", f"{view.config.step!r} reads the stream {stream!r}; add streams.{stream}.split.")


def gate_is_trained_by_the_step(view: StageView) -> None:
    """Require that the config has both a gate (a network that weights teachers) and the step `routing()`, or neither.

    `routing()` trains the gate with a loss of its own. Trained by the distillation loss, a gate would prefer the
    teacher that is easiest to match.
    """
    config, fusion, step = view.config, view.parts.components.fusion, view.parts.step
    if fusion.trained_by_step and view.teacher_configs and not step.trains_fusion:
        cure = "Set step='routing()', with a stream of labelled records for the gate"
        problem = f"with {config.step!r}, the gate {config.fusion!r} is trained by the very loss that it weights"
        raise ConfigError("step", f"{problem}. {cure}.")
    if step.trains_fusion and not fusion.trained_by_step:
        raise ConfigError("step", f"{config.step!r} cannot train {config.fusion!r}; set fusion='gate()'.")


def _uses_kernel(view: StageView) -> bool:
    config = view.config
    return config.kernels != "xla" and config.chunks > 1 and isinstance(view.student.logits, Factored)


def _trace_update(view: StageView) -> Any:
    """Trace one update of the training algorithm, and check what it returns.

    Raises:
        ConfigError: the update cannot be traced, or does not return a new train state and metrics.
    """
    trace = jax.make_jaxpr(view.parts.step.update, return_shape=True)
    try:
        traced, out = trace(view.train_state, view.teacher_variables, view.step_batch)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError("step", f"{view.config.step!r}: {typed_message_of(error)}") from error
    if problem := _wrong_update(view.train_state, out):
        raise ConfigError("step", f"{view.config.step!r}: its update returns {problem}.")
    return traced


def _wrong_update(state: TrainState, out: Any) -> str:
    """Return a text about the first problem with the output of `Step.update`, or '' if there is none.

    Args:
        state: the train state before the update, as shapes.
        out: the output, as shapes; it must be a new train state of the same shapes, and a dict of metrics by name.
    """
    if not isinstance(out, tuple) or isinstance(out, TrainState) or len(out) != 2:
        return f"{type(out).__name__}; return (train state, metrics)"
    new, metrics = out
    before, after = (
        {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(each)}
        for each in (state, new)
    )
    form = lambda x: f"{list(x.shape)} {x.dtype}" if x is not None else "missing"
    for name in dict.fromkeys((*before, *after)):
        was, now = form(before.get(name)), form(after.get(name))
        if was != now:
            return f"a train state in which {name} is {now}, and it was {was}; return a state of the same shapes"
    if not isinstance(metrics, Mapping) or "loss" not in metrics:
        return f"metrics {short_repr(metrics)}; return a dict of means by name, among them 'loss'"
    for name, mean in metrics.items():
        if not isinstance(mean, Mean) or jnp.shape(mean.sum) or jnp.shape(mean.count):
            return f"{name}={short_repr(mean)} among its metrics; return a Mean(sum, count) of two scalars"
    return ""


def step_initialises(view: StageView) -> None:
    """Require that the training algorithm can be initialised, and suits the config keys `roles` and `kernels`.

    Every parameter group named in `roles` must exist. If `kernels` chooses Pallas kernels, the algorithm must use them.
    One update is traced if the user's own code is part of it, before teachers are trained. The check takes a second; it
    is skipped if the config sets nothing that could be wrong here.
    """
    config, step = view.config, view.parts.step
    spec = parse(config.step, "step")
    parts = own_parts(config.to_dict())
    is_own = any(not part.startswith(f"{registry.datasets.kind} ") for part in parts)  # may fail in the update alone
    can_be_wrong = config.roles or _uses_kernel(view) or spec.kwargs or is_own
    if not (can_be_wrong or step.evolve_teachers or step.streams > view.parts.objective.streams):
        return
    state = view.train_state
    kernels = jaxpr.count_primitive(_trace_update(view).jaxpr, "pallas_call") if is_own or _uses_kernel(view) else 0
    if _uses_kernel(view) and not kernels:
        reason = f"{config.step!r} does not compute the gradient of all terms of a factored head at once"
        raise ConfigError("kernels", f"{config.kernels!r} would have no effect: {reason}. Set it to 'xla'.")
    for role in config.roles:
        if role not in state.params:
            raise ConfigError(f"roles.{role}", f"the step has no role {role!r}. {suggest(role, state.params)}")


def own_models_can_be_evaluated(view: StageView) -> None:
    """Require that models of the user's code run on evaluation batches, whose size may differ from training batches.

    The model is traced, and must return one row of logits for each row of the batch.
    """
    models = {"student.model": (view.config.student.model, view.parts.student)}
    models |= {f"{each.path}.model": (each.spec, each.network) for each in view.parts.teachers if each.runs}
    rows, cure = view.config.evaluate.batch_size, "Take the number of rows from the batch: batch['image'].shape[0]"
    shapes = {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in view.shapes["train"].items()}
    for path, (spec, model) in models.items():
        names = {each.name for each in nested_specs(parse(spec, path))} & {*registry.models}
        if all(registry.models[name].__module__.startswith("jaxdistill.") for name in names):
            continue
        forward = lambda v, batch, key, model=model: model.apply(*v, batch, train=False, key=key)
        try:
            variables = jax.eval_shape(model.init, KEY, view.shapes["train"])
            out, _ = jax.eval_shape(forward, variables, shapes, KEY)
        except Exception as error:
            problem = f"the model fails on a batch of evaluate.batch_size={rows} rows ({typed_message_of(error)})"
            raise ConfigError(path, f"{problem}. {cure}.") from error
        if out.logits.shape[:1] != (rows,):
            problem = f"the model returns {out.logits.shape[0]} rows of logits for a batch of {rows} rows"
            raise ConfigError(path, f"{problem} (evaluate.batch_size). {cure}.")


def memory_suffices(view: StageView) -> None:
    """Require that the parameters, optimiser state, teachers and batches of a stage fit into a device's memory.

    This is a lower bound: parameters count as if they were split evenly over the axes fsdp and tensor, and activations,
    gradients and copies come on top of it. If the devices are CPUs, a batch is in the same memory twice: as it was read
    and as it was put on the devices.
    """
    config, rows, mesh = view.config, view.shapes["train"], view.mesh.shape
    copies = 2 if view.mesh.devices.flat[0].platform == "cpu" else 1
    evaluated = size_of(rows) * config.evaluate.batch_size // config.batch_size
    state, teachers = view.train_state, zip(view.parts.teachers, view.teacher_variables, strict=True)
    live = {teacher.name: variables for teacher, variables in teachers if teacher.runs}
    of_parameters = lambda *trees: sum(map(size_of, trees)) // (mesh["fsdp"] * mesh["tensor"])
    of_rows = lambda count: copies * count // (mesh["data"] * mesh["fsdp"])
    parts = {
        "the parameters of the model": ("student.model", of_parameters(state.params, state.state)),
        "the state of the optimiser": ("student.model", of_parameters(state.opt_state)),
        **{f"the teacher {name}": (f"teachers.{name}.model", of_parameters(x)) for name, x in live.items()},
        f"a batch of {config.batch_size} rows": ("batch_size", of_rows(size_of(view.shapes))),
        f"a batch of {config.evaluate.batch_size} rows for evaluation": ("evaluate.batch_size", of_rows(evaluated)),
    }
    cure = "Choose a smaller model or smaller batches, or split them over more devices"
    require(parts, device_memory(view.mesh.devices.flat), cure)


def activations_are_constrained(view: StageView) -> None:
    """Require that the student constrains the sharding of each hidden state (by `by_rows`) if all mesh axes exceed 1.

    Without these constraints, the gradients of a model were wrong by 0.1 on a (2, 2, 2) mesh, and no error was raised.
    On a mesh with an axis of size 1, the gradients were right.
    """
    if min(view.mesh.shape.values()) == 1:
        return
    model, rows = view.parts.student, view.shapes["train"]
    out, variables = abstract_outputs(model, "student.model", rows, pairs=True)
    with jax.set_mesh(view.mesh):
        apply = lambda v, b, k: model.apply(v.params, v.state, b, train=True, key=k)[0]
        traced = jax.make_jaxpr(apply)(variables, rows, KEY)
    count, needed = jaxpr.count_primitive(traced.jaxpr, "sharding_constraint"), max(1, len(out.hidden_states))
    if count < needed:
        cure = "Pass each layer's activations through jaxdistill.by_rows, or set one axis of the mesh to 1."
        problem = f"constrains {count} of its {needed} activations: its gradients may be silently wrong on this mesh."
        raise ConfigError("student.model", f"{problem} {cure}")


def tensor_divides_models(view: StageView) -> None:
    """Require that `mesh.tensor` divides the number of attention heads and the vocabulary size of student and teachers.

    Models without a Hugging Face architecture, models with their own sharding rules, and teachers on separate devices
    are not checked.
    """
    tensor = view.mesh.shape["tensor"]
    teachers = {
        f"{teacher.path}.model": (teacher.model, teacher.rules)
        for teacher in view.teacher_configs.values()
        if not teacher.devices()
    }
    models = {"student.model": (view.config.student.model, view.config.student.rules), **teachers}
    for path, (spec, rules) in models.items():
        form = architecture_of_spec(spec, path) if tensor > 1 and not rules else None
        for name in ("heads", "kv_heads", "vocabulary"):
            size = form.arguments.get(name) if form else None
            if size and size % tensor:
                cure = f"Choose a divisor of {size}, and a larger mesh.fsdp"
                raise ConfigError("mesh.tensor", f"{tensor} does not divide {name}={size} of {path}. {cure}.")
