"""Cut the student out of a trained model before its training: measure the units, choose some, take their weights."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxdistill.compress.added import is_added
from jaxdistill.compress.axes import VOCABULARY, Sizes
from jaxdistill.compress.cut import Choice, Cut, choose, cuttable, sizes_after, sliced
from jaxdistill.compress.unit_scores import unit_scores
from jaxdistill.compress.vocabulary import count_tokens, unknown_token, with_required_first
from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.notes import note_damage
from jaxdistill.core.types import Variables
from jaxdistill.data.stream import Phases
from jaxdistill.evaluation.evaluator import ANSWERS
from jaxdistill.evaluation.interpret.head_importance import head_importance
from jaxdistill.models.abstract import embeds, init_variables
from jaxdistill.models.build import build_model
from jaxdistill.models.pretrained import Architecture
from jaxdistill.parallel.sharding import shardings, with_shardings
from jaxdistill.run.cut_specs import PATH, architecture, cut_of, source_of
from jaxdistill.run.evaluate_existing import evaluate
from jaxdistill.run.resolve import Resolved
from jaxdistill.run.samples import samples
from jaxdistill.run.stages import Stage
from jaxdistill.run.train import Data
from jaxdistill.teachers.load import load

FILE = Path("cut", "units.json")
COUNTED = 4096  # records whose tokens are counted at once
TYPES: seal.JsonTypes = {"cut": str, "source": str, "heads_by": str, "layers": list, "units": dict, "scores": dict}


class Source(NamedTuple):
    """The trained model that a student is cut out of.

    spec: its spec string
    model: the network
    variables: its parameters and state, on the host; arrays that its checkpoint lacks are drawn at random
    form: its family and arguments
    fresh: names of those arrays, such as a new head; the student draws its own
    """

    spec: str
    model: Model
    variables: Variables
    form: Architecture
    fresh: tuple[str, ...] = ()


def source(resolved: Resolved, trained: Mapping[str, Variables]) -> Source:
    """Load the model that the student is cut out of.

    Args:
        resolved: the run, whose student is cut out of a model.
        trained: variables of the teachers of the run, by name.

    Raises:
        ConfigError: its weights do not exist.
    """
    config, cut, rows = resolved.config, cut_of(resolved.config), resolved.student.shapes["train"]
    assert cut is not None
    spec, path = source_of(config, cut)
    form = architecture(spec, path)
    if cut.source:
        model = build_model(spec, PATH, config.dtype)
        assert model.load is not None
        shapes = Variables(*jax.eval_shape(model.init, jax.random.key(0), rows))
        pretrained = model.load(shapes)
        zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in rows.items()}
        init = jax.jit(partial(init_variables, model))
        values = Variables(*init(jax.random.key(config.seed), zeros, pretrained.read()))
        return Source(spec, model, jax.device_get(values), form, pretrained.fresh)
    teacher = resolved.live_teacher(cut.teacher, alone=True, plain=True)
    as_trained = resolved.teachers[cut.teacher]
    is_whole = as_trained.runs and not as_trained.options  # else its variables are not those of its own network
    values = trained[cut.teacher] if is_whole and cut.teacher in trained else load(teacher, rows)
    return Source(spec, teacher.network, jax.device_get(values), form)


def choice(resolved: Resolved, cut: Cut, source: Source, folder: Path, chosen: np.ndarray | Phases | None) -> Choice:
    """Choose the units that stay, or read the choice of an earlier, interrupted run of the same config.

    Args:
        resolved: the run.
        cut: what the cut keeps.
        source: the model that is cut.
        folder: the workdir, which gets `FILE`.
        chosen: numbers of the training records of the run; None: all.

    Raises:
        ConfigError: the units cannot be measured.
    """
    known = {"cut": resolved.config.student.model, "source": source.spec, "weights": _checksum(source.variables)}
    table = cuttable(source.form.family)
    before, after = table.sizes(source.form.arguments), sizes_after(cut, source.form.family, source.form.arguments)
    if known_choice := _read(folder / FILE, known, partial(choose, cut, before, after)):
        return known_choice
    try:
        unknown = 0
        scores = unit_scores(
            source.model, source.variables, samples(resolved.data, cut.records, chosen), table, source.form.arguments
        )
        by = ""
        if after.units.get("heads/0", 0) < before.units.get("heads/0", 0):
            importance = _head_importance(source, samples(resolved.data, cut.records, chosen), before)
            scores, by = scores | (importance or {}), "importance" if importance else "activation"
        if after.units.get(VOCABULARY, 0) < before.units.get(VOCABULARY, 0):
            counts, unknown = _token_counts(resolved, before.units[VOCABULARY])
            scores = {**scores, VOCABULARY: counts}
    except ValueError as error:
        raise ConfigError(PATH, f"{known['cut']!r}: {error}.") from None
    choice_of_units = choose(cut, before, after, scores)._replace(unknown=unknown)
    units = {name: list(ids) for name, ids in choice_of_units.units.items()}
    rounded = {name: np.asarray(x, np.float64).tolist() for name, x in scores.items()}
    count = min(cut.records, resolved.data.count_training_records())
    content = {**known, "records": count, "heads_by": by, "layers": list(choice_of_units.layers), "units": units}
    content["unknown"] = choice_of_units.unknown
    (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
    seal.write(folder / FILE, {**content, "scores": rounded})
    return choice_of_units


def _read(
    file: Path, known: Mapping[str, str], choose_by: Callable[[Mapping[str, np.ndarray]], Choice]
) -> Choice | None:
    """Read which units stay; None: the file is missing, damaged, of another model, or not what its scores say."""
    try:
        content = seal.read(file, TYPES, required=True)
        kept = {name: tuple(ids) for name, ids in content["units"].items()}
        choice_of_units = Choice(tuple(content["layers"]), kept, int(content.get("unknown", 0)))
        scores = {name: np.asarray(values, np.float64) for name, values in content["scores"].items()}
        chosen = choose_by(scores)._replace(unknown=choice_of_units.unknown)
        return choice_of_units if known.items() <= content.items() and chosen == choice_of_units else None
    except (FileNotFoundError, DamageError) as error:
        note_damage(error)
        return None
    except (TypeError, ValueError, KeyError, IndexError):  # values of other types than `choice` writes
        return None


def _token_counts(resolved: Resolved, size: int) -> tuple[np.ndarray, int]:
    """Return how often each token occurs in the training records, `[size]`, and the unknown token.

    Special tokens count more than all others, so that they stay. See `rules.run.cut_vocabulary_has_tokens`.
    """
    data = resolved.data
    assert data.tokenization is not None
    tokenizer = json.loads(data.tokenization.file.read_text(encoding="utf-8"))
    records, counts = data.open(data.streams["train"]), np.zeros(size)
    for start in range(0, len(records), COUNTED):
        rows = records.take(np.arange(start, min(start + COUNTED, len(records))))
        counts += count_tokens([rows[field] for field in data.tokenization.own_fields], size)
    unknown = unknown_token(tokenizer)
    assert unknown is not None
    return with_required_first(tokenizer, counts), unknown


def _checksum(variables: Variables) -> str:
    """Return the SHA-256 of the arrays of a model, in the order of their names."""
    digest = hashlib.sha256()
    for part in variables:
        for name in sorted(part):
            digest.update(name.encode() + np.ascontiguousarray(part[name]).tobytes())
    return digest.hexdigest()


def _head_importance(source: Source, batches: Iterable[Mapping[str, Any]], before: Sizes) -> dict[str, np.ndarray]:
    """Return the importance of each head, or group of heads, by axis; empty: the records have no labels for it."""
    first, *rest = batches
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in first.items()}
    if "label" not in first or source.fresh or embeds(source.model, shapes):
        return {}
    heads = head_importance(source.model, source.variables, [first, *rest])  # [layers, heads]
    groups = heads.reshape(len(heads), -1, before.groups).sum(-1)
    return {f"heads/{layer}": row for layer, row in enumerate(groups)}


def begin(abstract: Variables, source: Source, units: Choice) -> Variables:
    """Return the variables from which the smaller model starts, with the sharding of its own variables.

    Args:
        abstract: shapes and shardings of the variables of the smaller model.
        source: the model that is cut.
        units: the units that stay.
    """
    sizes = cuttable(source.form.family).sizes(source.form.arguments)
    take = partial(
        sliced,
        source.form.family,
        source.form.arguments,
        shapes=abstract,
        choice=units,
        head_size=sizes.head_size,
        groups=sizes.groups,
    )
    known = lambda arrays: {name: x for name, x in arrays.items() if name not in source.fresh}
    kept_arrays = Variables(*map(known, source.variables))
    shapes = jax.eval_shape(take, kept_arrays)
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    kept = Variables({n: layout.params[n] for n in shapes.params}, {n: layout.state[n] for n in shapes.state})
    return jax.jit(take, out_shardings=kept)(kept_arrays)


class Cutter:
    """Gives the student and its controls the weights of the model that they are cut out of.

    Args:
        resolved: the run.
        folder: the workdir.
        data: its records, opened for reading.
        console: where the cut is reported.
    """

    def __init__(self, resolved: Resolved, folder: Path, data: Data, console: Console):
        self._resolved, self._folder, self._data, self._console = resolved, folder, data, console
        self._made: tuple[Source, Choice] | None = None

    def start(self, stage: Stage, trained: Mapping[str, Variables]) -> Callable[[Variables], Variables] | None:
        """Return the function that gives a stage its first variables; None: its model is not cut out of another.

        Args:
            stage: the training of a model.
            trained: variables of the teachers of the run, by name.
        """
        cut = cut_of(self._resolved.config)
        if cut is None or stage.kind == "teacher":
            return None

        def first(abstract: Variables) -> Variables:
            if self._made is None:
                pretrained = source(self._resolved, trained)
                self._made = pretrained, choice(self._resolved, cut, pretrained, self._folder, self._data.chosen)
            values = begin(abstract, *self._made)
            self._require_all(values, abstract, cut)
            if stage.kind == "student" and (whole := _completed(values, abstract)):
                self._report(stage, whole, self._made[0])
            return values

        return first

    def _require_all(self, values: Variables, abstract: Variables, cut: Cut) -> None:
        """Raise a ConfigError if the source lacks arrays of the smaller model, other than those of a new head."""
        assert self._made is not None
        loaded = set(values.params) | set(values.state) | set(self._made[0].fresh)
        missing = [n for part in abstract for n in part if n not in loaded and not is_added(n)]
        if missing and "classes" not in cut.options:
            text = self._resolved.config.student.model
            raise ConfigError(PATH, f"{text!r}: the model that is cut has no {missing[0]!r} of this shape.")

    def restore(self, stage: Stage, trained: Mapping[str, Variables]) -> None:
        """Write `FILE` again if it is missing or damaged; the arguments are those of `start`, for a trained student."""
        if (first := self.start(stage, trained)) and not sentence(self._folder):
            model, rows = stage.parts.student, stage.shapes["train"]
            shapes = Variables(*jax.eval_shape(model.init, jax.random.key(0), rows))
            first(with_shardings(shapes, shardings(shapes, self._resolved.mesh, stage.settings.rules)))

    def _report(self, stage: Stage, values: Variables, source: Source) -> None:
        """Print what the student answers before its training, and keep it in `FILE`."""
        ours, theirs = self._answers(stage.parts.student, values), self._answers(source.model, source.variables)
        share = lambda a, b: None if a is None or b is None else float(np.mean(np.equal(a, b)))
        predicted = ours.get("predicted")
        before = {
            "agreement": share(predicted, theirs.get("predicted")),
            "accuracy": share(predicted, ours.get("label")),
        }
        content = seal.read(self._folder / FILE, TYPES, required=True)
        seal.write(self._folder / FILE, {**content, "before_training": before})
        self._console.print(f"{stage.name:>12}  {sentence(self._folder)}", soft_wrap=True)

    def _answers(self, model: Model, variables: Variables) -> Mapping[str, Any]:
        total = evaluate(model, variables, self._resolved.mesh, self._resolved.student, self._data)
        return total[ANSWERS].values if ANSWERS in total else {}


def _completed(values: Variables, abstract: Variables) -> Variables | None:
    """Return first variables with the zeros that a quantizer adds; None: others are missing, such as a new head."""
    parts = []
    for known, wanted in zip(values, abstract, strict=True):
        missing = {name: x for name, x in wanted.items() if name not in known}
        if not all(map(is_added, missing)):
            return None
        parts.append({**known, **{name: jnp.zeros(x.shape, x.dtype) for name, x in missing.items()}})
    return Variables(*parts)


def sentence(folder: Path) -> str:
    """Return what the student of a run was cut out of, and what it answered before its training; empty: it was not.

    Args:
        folder: the workdir.
    """
    try:
        content = seal.read(folder / FILE, TYPES, required=True)
    except (FileNotFoundError, DamageError) as error:
        note_damage(error)
        return ""
    before = content.get("before_training", {})
    shares = (("agreement", "gave the answer of the model that was cut on"), ("accuracy", "was right on"))
    parts = [f"{what} {100 * before[name]:.2f} %" for name, what in shares if before.get(name) is not None]
    gave = f" Before its training, it {' and '.join(parts)} of the test records." if parts else ""
    start = f"The student, and its controls, start as {content['cut']}"
    return f"{start}, chosen on {content['records']} training records.{gave}"
