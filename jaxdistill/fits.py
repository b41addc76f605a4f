"""Whether the parts of a stage fit together: each is run on shapes alone, what does not fit is named by its path."""

import re
import sys
import sysconfig
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill import registry
from jaxdistill.data import tokenizer as tokenizers
from jaxdistill.data.tokens import Tokenization
from jaxdistill.errors import ConfigError, suggest
from jaxdistill.models.pretrained import form_of_spec
from jaxdistill.objective import Weighted, objective
from jaxdistill.types import Fusion, Model, Outputs, Shapes, Signals, Step, Variables


def outputs(model: Model, path: str, shapes: Shapes) -> tuple[Outputs, Variables]:
    """Shapes of a model's outputs and variables."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        values = jax.eval_shape(model.init, key, shapes)
        out, _ = jax.eval_shape(lambda v, b, k: model.apply(*v, b, train=True, key=k), values, shapes, key)
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ConfigError(path, _short(error)) from error
    return out, Variables(*values)


def _short(error: Exception) -> str:
    said = re.sub(r"\s+", " ", str(error).strip().split("\n\n")[0])[:400] or type(error).__name__
    return said + _place(error)


def _place(error: Exception) -> str:
    """Where it was raised, if in a file of neither this package nor an installed one: in a part of one's own."""
    others = (
        *(f"{folder}/" for folder in (Path(__file__).parent, sysconfig.get_paths()["purelib"], sys.base_prefix)),
        "<",
    )
    frames = traceback.extract_tb(error.__traceback__)  # from here on inwards
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def check_shapes(
    config: ConfigDict,
    student: Model,
    teachers: Mapping[str, Model],
    terms: Mapping[str, Weighted],
    fused: Fusion,
    shapes: Mapping[str, Shapes],
    classes: int | None,
) -> Any:
    """Runs every part on shapes, so that what does not fit is named by its config path; the signals of `train`."""
    signals = {stream: _signals(config, student, teachers, rows) for stream, rows in shapes.items()}
    seen = signals["train"]
    _check_classes("student.model", config.student.model, seen.student, classes)
    aligned = any("alignment" in term.needs for term, _ in terms.values())
    for name, out in zip(teachers, seen.teachers, strict=True):
        if not aligned and out.spans is None:  # else the terms say what they cannot compare
            spec = config.teachers[name].model
            path, ours = f"teachers.{name}.", seen.student.logits.shape[-1]
            if config.teachers[name].classes:
                _check_map(f"{path}classes", config.teachers[name].classes, ours)
            _check_classes(f"{path}model", spec, out, ours, f", or map them by {path}classes")
    if teachers:
        constant = Weighted(registry.losses.build("cross_entropy", ""), 1.0)
        _try_objective({"cross_entropy": constant}, fused, signals, "fusion")
    by_kernel = (config.chunks, config.kernels) if config.kernels != "xla" else ()
    for name, weighted in terms.items():
        _try_objective({name: weighted}, fused, signals, f"objective.{name}", by_kernel)
    _check_layers(config, seen.student, seen.teachers)
    return seen


def _signals(config: ConfigDict, student: Model, teachers: Mapping[str, Model], rows: Shapes) -> Any:
    """What a term would see of one stream, as shapes."""
    seen, variables = outputs(student, "student.model", rows)
    found = [outputs(teacher, f"teachers.{name}.model", rows) for name, teacher in teachers.items()]
    params = {"student": variables.params, "teachers": tuple(values.params for _, values in found)}
    scalar, step = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    every: tuple[Any, ...] = (tuple(out for out, _ in found), None, rows, rows["mask"], step, scalar, params)
    return Signals(seen, *every)


def _try_objective(
    terms: Mapping[str, Weighted],
    fused: Fusion,
    signals: Mapping[str, Any],
    path: str,
    by_kernel: tuple[Any, ...] = (),
) -> None:
    """Initialises and applies an objective of one term on shapes, and by a kernel, which may not take it."""
    tried = objective(terms, fused, *by_kernel)
    for stream in tried.streams - set(signals):
        raise ConfigError(path, f"reads the stream {stream!r}; add streams.{stream}.split.")
    every = {stream: signals[stream] for stream in tried.streams}
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        params, state = jax.eval_shape(tried.init, key, every)
        jax.eval_shape(lambda p, s, x, k: tried.apply(p, s, x, key=k), params, state, every, key)
        if by_kernel:
            weights = jax.eval_shape(tried.weights, jax.ShapeDtypeStruct((), jnp.int32))
            jax.eval_shape(lambda p, s, x, w, k: tried.loss(p, s, x, w, key=k), params, state, every, weights, key)
    except (ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        raise ConfigError(path, _short(error)) from error


def variables_of(fused: Fusion, signals: Any) -> list[Any]:
    """What a fusion learns or remembers, as shapes; empty for a fixed function of the teachers."""
    dense = replace(signals, teachers=tuple(jax.eval_shape(lambda o: o.dense(), o) for o in signals.teachers))
    return jax.tree.leaves(jax.eval_shape(fused.init, jax.eval_shape(lambda: jax.random.key(0)), dense))


def _check_classes(path: str, spec: str, outputs: Outputs, classes: int | None, cure: str = "") -> None:
    given = outputs.logits.shape[-1]
    if classes is not None and given != classes:
        raise ConfigError(path, f"{spec!r} has {given} classes, {classes} are needed; set classes={classes}{cure}.")


def _check_map(path: str, classes: tuple[int, ...], needed: int) -> None:
    if len(classes) != needed:
        cure = "Give a number of the teacher's for each class of the student, -1 for one that it does not know"
        raise ConfigError(path, f"{classes} maps {len(classes)} classes, {needed} are needed. {cure}.")


def _check_layers(config: ConfigDict, student: Outputs, teachers: tuple[Outputs, ...]) -> None:
    if not teachers:
        return
    for pair in config.evaluate.layers:
        for layer, states, whose in zip(pair, (student, teachers[0]), ("student", "teacher"), strict=True):
            count = len(states.hidden_states)
            if not -count <= layer < count:
                cure = (
                    f"it has layers 0 (the embedding) to {count - 1}"
                    if count
                    else "it returns none; set evaluate.layers=()"
                )
                raise ConfigError("evaluate.layers", f"{pair}: the {whose} has no layer {layer}; {cure}.")


def check_pretrained(model: Model, path: str, shapes: Shapes, *, complete: bool) -> None:
    """A model's checkpoint of the world fits it; where nothing will be trained, it has weights for every array."""
    if model.load is None:
        return
    try:
        found = model.load(outputs(model, path, shapes)[1])
    except ValueError as error:
        raise ConfigError(path, f"{error}.") from None
    if complete and found.fresh:
        cure = f"Train it here: {path.removesuffix('.model')}.steps=1000"
        raise ConfigError(path, f"its checkpoint has no weights for {', '.join(found.fresh[:4])}. {cure}.")


def check_constrained(model: Model, rows: Shapes, mesh: Mesh) -> None:
    """A model that is trained on all three axes constrains its activations: one constraint for each hidden state.

    One that never calls `by_rows` got gradients wrong by 0.1 on a (2, 2, 2) mesh, without an error; with one of
    the axes at 1 it was right.
    """
    if min(mesh.shape.values()) == 1:
        return
    out, variables = outputs(model, "student.model", rows)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        traced = jax.make_jaxpr(lambda v, b, k: model.apply(*v, b, train=True, key=k)[0])(variables, rows, key)
    found, needed = _constraints(traced.jaxpr), max(1, len(out.hidden_states))
    if found < needed:
        cure = "Pass each layer's activations through jaxdistill.by_rows, or set one axis of the mesh to 1."
        said = f"constrains {found} of its {needed} activations: its gradients may be silently wrong here."
        raise ConfigError("student.model", f"{said} {cure}")


def _constraints(program: Any) -> int:
    """How many activations a program constrains, in every turn of its scans."""
    total = 0
    for equation in program.eqns:
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = (getattr(each, "jaxpr", each) for each in jax.tree.leaves(equation.params))
        total += turns * sum(_constraints(each) for each in inner if hasattr(each, "eqns"))
        total += equation.primitive.name == "sharding_constraint"
    return total


def check_divided(config: ConfigDict, mesh: Mesh) -> None:
    """The axis tensor divides what it splits in every network of the world: heads and vocabulary.

    Who gives rules of his own knows better.

    Raises:
        ConfigError: an array would be whole on every device, or a head spread over two.
    """
    tensor = mesh.shape["tensor"]
    beside = {f"teachers.{name}.model": entry for name, entry in config.teachers.items() if not entry.apart}
    models = {"student.model": config.student, **beside}
    for path, entry in models.items():
        form = form_of_spec(entry.model, path) if tensor > 1 and not entry.rules else None
        for name in ("heads", "kv_heads", "vocabulary"):
            size = form.arguments.get(name) if form else None
            if size and size % tensor:
                cure = f"Choose a divisor of {size}, and more of mesh.fsdp"
                raise ConfigError("mesh.tensor", f"{tensor} does not divide {name}={size} of {path}. {cure}.")


def check_step(
    config: ConfigDict, step: Step, shapes: Mapping[str, Shapes], teachers: tuple[Model, ...], by_kernel: bool
) -> None:
    """The step begins, every role with an optimiser is one that it trains, and teachers that learn are beside it.

    Args:
        by_kernel: it shall compute the terms of a factored head by a kernel.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    frozen = tuple(Variables(*jax.eval_shape(teacher.init, key, shapes["train"])) for teacher in teachers)
    rows = {stream: shapes[stream] for stream in step.streams}
    try:
        state = jax.eval_shape(step.init, key, frozen, rows)
        said = str(jax.make_jaxpr(step.update)(state, frozen, rows)) if by_kernel else "pallas_call"
    except (ValueError, TypeError) as error:
        raise ConfigError("step", _short(error)) from error
    if "pallas_call" not in said:
        why = f"{config.step!r} does not take the gradient of all terms of a factored head at once"
        raise ConfigError("kernels", f"{config.kernels!r} would change nothing: {why}. Set it to 'xla'.")
    known = state.params
    for name, entry in config.teachers.items():
        for key in ("apart", "quantized"):
            if entry[key] and "teachers" in known:
                why = f"{config.step!r} trains teachers, and this one would stay as it is"
                raise ConfigError(f"teachers.{name}.{key}", f"{why}. Leave it out.")
    for role in config.roles:
        if role not in known:
            raise ConfigError(f"roles.{role}", f"the step has no role {role!r}. {suggest(role, known)}")


def check_vocabulary(config: ConfigDict, how: Tokenization | None, size: int | None) -> None:
    """Every network that is written in a format of the world has a row of its embedding for each token.

    Args:
        how: the data's tokenization.
        size: how many tokens its own tokenizer has.

    Raises:
        ConfigError: the tokenizer that a network reads has more.
    """
    if how is None:
        return
    others = {prefix: tokenizers.vocabulary(tokenizers.load(file)) for prefix, file in how.others.items()}
    models = {"student.model": (config.student.model, size or 0)}
    for name, entry in config.teachers.items():
        models[f"teachers.{name}.model"] = (entry.model, others.get(entry.reads, size or 0))
    for path, (spec, tokens) in models.items():
        form = form_of_spec(spec, path)
        rows = form.arguments.get("vocabulary") if form else None
        if rows is not None and rows < tokens:
            cure = "Take the tokenizer of this network, or one cut for it (keep=)"
            raise ConfigError(path, f"has an embedding of {rows} rows, the tokenizer {tokens} tokens. {cure}.")
