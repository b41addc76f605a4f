"""Make the student by structured pruning of a trained model: score the units, keep the best, copy their weights."""

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
    """The trained model from which the student is made by structured pruning.

    spec: spec string of the model
    model: the network
    variables: parameters and state, on the host; arrays that the checkpoint lacks are initialised at random
    form: family and arguments of the model
    fresh: names of the arrays that the checkpoint lacks, such as a new head; the student initialises its own
    """

    spec: str
    model: Model
    variables: Variables
    form: Architecture
    fresh: tuple[str, ...] = ()


def source(resolved: Resolved, trained: Mapping[str, Variables]) -> Source:
    """Load the trained model that is pruned to make the student: a teacher of the run, or a pretrained checkpoint.

    Args:
        resolved: the run, whose student is made by structured pruning.
        trained: variables of the teachers of the run, by name.

    Raises:
        ConfigError: the weights of the model do not exist.
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
    is_whole = as_trained.runs and not as_trained.options  # another network would not fit its variables
    values = trained[cut.teacher] if is_whole and cut.teacher in trained else load(teacher, rows)
    return Source(spec, teacher.network, jax.device_get(values), form)


def choice(resolved: Resolved, cut: Cut, source: Source, folder: Path, chosen: np.ndarray | Phases | None) -> Choice:
    """Choose the layers and units that structured pruning keeps, by their scores on training records.

    The choice is written to `FILE`; if an interrupted run of the same config has already written it, it is only read.

    Args:
        resolved: the run.
        cut: how many units are kept.
        source: the model that is pruned.
        folder: the workdir, in which `FILE` is written.
        chosen: numbers of the training records that the run uses; None means all records.

    Raises:
        ConfigError: the units cannot be scored.
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
    """Read the choice of units that pruning keeps from a file.

    Return None if the file is missing or damaged, belongs to another model, or contradicts the scores that it holds.
    """
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
    """Return how often each token occurs in the training records, `[size]`, and the number of the unknown token.

    Special tokens get the largest counts, so that pruning keeps them. See `rules.run.cut_vocabulary_has_tokens`.
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
    """Return the SHA-256 of the parameters and state of a model, in hexadecimal."""
    digest = hashlib.sha256()
    for part in variables:
        for name in sorted(part):
            digest.update(name.encode() + np.ascontiguousarray(part[name]).tobytes())
    return digest.hexdigest()


def _head_importance(source: Source, batches: Iterable[Mapping[str, Any]], before: Sizes) -> dict[str, np.ndarray]:
    """Return the importance of each attention head, `[heads]`, in a dict by layer: "heads/0", "heads/1", ...

    Heads that share keys and values count as one. Return an empty dict if the records have no labels, or the model is
    not trained to predict them.
    """
    first, *rest = batches
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in first.items()}
    if "label" not in first or source.fresh or embeds(source.model, shapes):
        return {}
    heads = head_importance(source.model, source.variables, [first, *rest])  # [layers, heads]
    groups = heads.reshape(len(heads), -1, before.groups).sum(-1)
    return {f"heads/{layer}": row for layer, row in enumerate(groups)}


def begin(abstract: Variables, source: Source, units: Choice) -> Variables:
    """Return the initial variables of the pruned model: the weights of the kept units, sharded as in `abstract`.

    Arrays that the trained model lacks, or has in another shape, are left out.

    Args:
        abstract: shapes and shardings of the variables of the pruned model.
        source: the trained model that is pruned.
        units: the layers and units that are kept.
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
    """The structured pruning of a run, which initialises the student and its controls from a trained model.

    Args:
        resolved: the run.
        folder: the workdir.
        data: the records of the run, opened for reading.
        console: where the scores of the pruned student are printed.
    """

    def __init__(self, resolved: Resolved, folder: Path, data: Data, console: Console):
        self._resolved, self._folder, self._data, self._console = resolved, folder, data, console
        self._made: tuple[Source, Choice] | None = None

    def start(self, stage: Stage, trained: Mapping[str, Variables]) -> Callable[[Variables], Variables] | None:
        """Return the function that computes the initial variables of a model by pruning a trained model.

        The function takes the shapes and shardings of the variables. Return None if the model is not made by pruning.

        Args:
            stage: the training of the model.
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
        """Raise a ConfigError if the trained model lacks arrays of the pruned model, other than those of a new head."""
        assert self._made is not None
        loaded = set(values.params) | set(values.state) | set(self._made[0].fresh)
        missing = [n for part in abstract for n in part if n not in loaded and not is_added(n)]
        if missing and "classes" not in cut.options:
            text = self._resolved.config.student.model
            raise ConfigError(PATH, f"{text!r}: the model that is cut has no {missing[0]!r} of this shape.")

    def restore(self, stage: Stage, trained: Mapping[str, Variables]) -> None:
        """Write `FILE`, with the units that pruning keeps, again if it is missing or damaged.

        The arguments are those of `start`, for the student, which is trained already.
        """
        if (first := self.start(stage, trained)) and not sentence(self._folder):
            model, rows = stage.parts.student, stage.shapes["train"]
            shapes = Variables(*jax.eval_shape(model.init, jax.random.key(0), rows))
            first(with_shardings(shapes, shardings(shapes, self._resolved.mesh, stage.settings.rules)))

    def _report(self, stage: Stage, values: Variables, source: Source) -> None:
        """Evaluate the pruned student before its training; print its agreement and accuracy, and add them to `FILE`."""
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
    """Return initial variables with the arrays of zeros that quantisation and pruning masks need.

    Return None if other arrays are missing, such as a new head.
    """
    parts = []
    for known, wanted in zip(values, abstract, strict=True):
        missing = {name: x for name, x in wanted.items() if name not in known}
        if not all(map(is_added, missing)):
            return None
        parts.append({**known, **{name: jnp.zeros(x.shape, x.dtype) for name, x in missing.items()}})
    return Variables(*parts)


def sentence(folder: Path) -> str:
    """Return sentences for the report: how the student was pruned, and its scores before its training.

    Return an empty text if the student was not pruned, or the file that records the pruning is missing or damaged.

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
