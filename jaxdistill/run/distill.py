"""A run: teachers without a checkpoint are trained, the student is distilled, the control trained, all are measured."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

from jaxdistill.core.checkpoint import CheckpointError, load_variables, write_json
from jaxdistill.core.types import NO_VARIABLES, Variables
from jaxdistill.data.image.processors import config_of
from jaxdistill.data.pipeline import TEST
from jaxdistill.data.stream import evaluation_batches
from jaxdistill.evaluation.evaluator import evaluator, reliability, scores, totals
from jaxdistill.evaluation.report import page, table
from jaxdistill.export.hugging_face import write
from jaxdistill.export.model_card import card as model_card
from jaxdistill.models.pretrained import form_of_spec
from jaxdistill.parallel.compile import jit_evaluate, local_rows
from jaxdistill.parallel.sharding import laid_out, shardings
from jaxdistill.run import subset, workdir
from jaxdistill.run.config import Config
from jaxdistill.run.preemption import Preemption, Stopped
from jaxdistill.run.provenance import provenance
from jaxdistill.run.resolve import Resolved, resolve
from jaxdistill.run.rules.stage import initialised_here
from jaxdistill.run.stages import Stage
from jaxdistill.run.train import Data, References, StageContext, Trained, train
from jaxdistill.teachers.load import initialise, load
from jaxdistill.teachers.submesh import joined
from jaxdistill.teachers.teacher import Query, Teacher, cost_of


class Result(NamedTuple):
    """The result of a run.

    rows: the table, one dict per model: name, accuracy, nll, ece, parameters, bytes, flops, latency_ms, and what was
        transferred
    variables: of every model, by the name of its row
    workdir: where all of it lies
    """

    rows: list[dict[str, Any]]
    variables: dict[str, Variables]
    workdir: Path


def check(config: Config, folder: str | Path) -> Resolved:
    """Resolves a config and checks everything that can be known before a run compiles.

    Raises:
        ConfigError: naming the path, the value and the cure.
    """
    resolved = resolve(config, jax.devices())
    resolved.check_workdir(Path(folder))
    _ = resolved.stages
    resolved.check_run()
    resolved.check_weights()
    return resolved


def distill(config: Config, folder: str | Path, console: Console | None = None, source: str = "") -> Result:
    """Runs a config. A workdir with an unfinished run of the same config is resumed, to the bit.

    Args:
        config: from `jaxdistill.make(...)`, or of a config file.
        folder: the workdir, for checkpoints, logs, results.json and report.html.
        console: to draw on.
        source: the config file, kept with the results so that parts registered there are found again.

    Raises:
        ConfigError: before any compilation, for whatever is wrong with the config, the data, the mesh or the workdir.
        NonFiniteError, Stopped, CheckpointError: see `train.train`.
    """
    folder, console = Path(folder), console or Console(quiet=jax.process_index() > 0)
    resolved = check(config, folder)
    _keep_programs(config.logging.compilation_cache)
    record = {"config": config.to_dict(), "provenance": provenance(config.seed)}
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(workdir.held(folder))
            record |= workdir.claim(folder, record, source)
        run = Run(resolved, folder, console)
        subset.hold(folder, resolved.data, run.data.chosen)
        preemption = stack.enter_context(Preemption())
        run.load_teachers()
        for stage in resolved.stages:
            run.stage(stage, preemption)
        if preemption.asked:  # when the last stage was at its end already: a study of many runs must not go on
            raise Stopped("all models are trained; only the table and the page are missing")
        return run.finish(record)


def _keep_programs(folder: str) -> None:
    """Keeps compiled programs in a folder for the next run, from the command line as from Python."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        compilation_cache.reset_cache()  # JAX opens its cache at the first compilation, and never looks again


class Run:
    """The stages of one run, and what they give to each other: the teachers' variables.

    Args:
        resolved: what is run.
        folder: the workdir.
        console: to draw on.
    """

    def __init__(self, resolved: Resolved, folder: Path, console: Console):
        self.resolved, self.folder, self.console = resolved, folder, console
        data = resolved.data
        records = {name: data.open(stream) for name, stream in data.streams.items()}
        stored = {name: self._stored(name) for name in data.with_test}
        self.data = Data(records, data.open(data.test), stored, {}, subset.chosen(data, records["train"]))
        self.values: dict[str, Variables] = {}  # of the teachers, by name
        self.outcomes: dict[str, dict[str, Any]] = {}  # what is known of a model, by the name of its row
        self.variables: dict[str, Variables] = {}  # by the name of its row

    def _stored(self, stream: str) -> tuple[Any, ...]:
        found = (teacher.stored(stream) for teacher in self.resolved.teachers.values())
        return tuple(beside for beside in found if beside is not None)

    @property
    def rows(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes of the student's training batch."""
        return self.resolved.student.shapes["train"]

    def load_teachers(self) -> None:
        """Loads and measures the teachers whose values exist before the run."""
        for name, teacher in self.resolved.teachers.items():
            if teacher.trained_here:  # in a stage of its own
                continue
            if initialised_here(self.resolved.student.view, name):  # measured when it has become something
                self.values[name] = initialise(teacher, self.rows)
                continue
            self._measured(teacher, load(teacher, self.rows) if teacher.runs else NO_VARIABLES)

    def _measured(self, teacher: Teacher, values: Variables) -> None:
        """Measures a teacher that no stage has trained, and remembers it."""
        measured = Trained(values, self._evaluate(teacher, values), {})
        cost = teacher.cost(values, self.rows)
        self._remember_teacher(teacher, _outcome(f"teacher {teacher.name}", cost, measured, 0.0), values)

    def stage(self, stage: Stage, preemption: Preemption) -> None:
        """Trains a stage, or takes it over if it was finished before."""
        folder = self.folder / stage.planned.folder
        if self._finished(stage, folder):
            self.console.print(f"{stage.name:>12}  was finished before, at step {stage.settings.steps}")
            return
        began = time.perf_counter()
        beside = () if stage.kind == "teacher" else self._arguments()
        trained = train(stage, folder, beside, self._context(stage, preemption))
        cost = cost_of(stage.parts.student, trained.variables, self.rows)
        outcome = _outcome(stage.name, cost, trained, time.perf_counter() - began)
        self._remember(stage, outcome, trained.variables)
        for evolved, values in zip(stage.parts.teachers, trained.teachers, strict=False):
            self._measured(evolved, values)
        if jax.process_index() == 0:
            write_json(folder / "result.json", {**outcome, "step": stage.settings.steps})

    def _context(self, stage: Stage, preemption: Preemption) -> StageContext:
        """What a stage shares with the others, and of the data what it reads."""
        learns = bool(stage.parts.teachers)
        only = lambda by_stream: by_stream if learns else {TEST: by_stream[TEST]} if TEST in by_stream else {}
        queries = {} if stage.kind == "teacher" else self._queries
        chosen = self.data.chosen if stage.data.select or stage.data.order else None
        data = self.data._replace(stored=only(self.data.stored), queries=only(queries), chosen=chosen)
        models = tuple(teacher.model for teacher in self.resolved.teachers.values())
        references = References(models, self.resolved.reference)
        return StageContext(data, self.resolved.mesh, references, self.console, preemption)

    @functools.cached_property
    def _queries(self) -> dict[str, Query]:
        """What teachers outside the step are asked, by stream, once the values of all teachers are there."""
        found = {}
        for stream in self.resolved.data.with_test:
            asked = {
                name: query
                for name, teacher in self.resolved.teachers.items()
                if (query := teacher.query(stream, self.values[name], self.resolved.mesh))
            }
            if asked:
                found[stream] = joined(asked)
        return found

    def _finished(self, stage: Stage, folder: Path) -> bool:
        """Takes over what an earlier run of this stage left, if it is complete and whole."""
        if stage.parts.step.evolve_teachers:  # its checkpoints hold teachers too, which only the loop restores
            return False
        try:
            outcome = json.loads((folder / "result.json").read_text())
            if outcome["step"] != stage.settings.steps:
                return False
            model = stage.parts.student
            shapes = Variables(*jax.eval_shape(model.init, jax.random.key(0), stage.shapes["train"]))
            abstract = laid_out(shapes, shardings(shapes, self.resolved.mesh, stage.settings.rules))
            variables = load_variables(folder / "checkpoints", str(stage.settings.steps), abstract)
        except (OSError, ValueError, KeyError, CheckpointError):  # the loop says what is damaged, and mends it
            return False
        self._remember(stage, outcome, variables)
        return True

    def _arguments(self) -> tuple[Variables, ...]:
        """The teachers' variables as the step of student and control takes them, in the order of the config."""
        return tuple(teacher.argument(self.values[name]) for name, teacher in self.resolved.teachers.items())

    def _evaluate(self, teacher: Teacher, variables: Variables) -> dict[str, Any]:
        """The metrics of a teacher by itself, as sums."""
        evaluate = jit_evaluate(evaluator(teacher.network, (), None, (), teacher.prefix), variables, teacher.mesh)
        size = self.resolved.student.settings.evaluate_rows
        batches = evaluation_batches(
            self.data.test,
            batch_size=size,
            rows=local_rows(teacher.mesh, size),
            transforms=self.resolved.data.streams["train"].transforms,
            beside=self.data.stored[TEST],
        )
        return totals(jax.device_get(evaluate(batch)) for batch in batches)

    def _remember(self, stage: Stage, outcome: dict[str, Any], variables: Variables) -> None:
        if stage.kind == "teacher":
            self._remember_teacher(self.resolved.teachers[stage.planned.teacher], outcome, variables)
        else:
            self.outcomes[stage.name], self.variables[stage.name] = outcome, variables

    def _remember_teacher(self, teacher: Teacher, outcome: dict[str, Any], variables: Variables) -> None:
        """Remembers a teacher, on its own devices: it may have been trained on the student's."""
        name = f"teacher {teacher.name}"
        values = teacher.place(variables)
        self.outcomes[name], self.variables[name], self.values[teacher.name] = outcome, values, values

    def finish(self, record: Mapping[str, Any]) -> Result:
        """Writes results.json and report.html, prints the table, and writes models for transformers."""
        names = [f"teacher {name}" for name in self.resolved.teachers]
        names += [name for name in ("student", "control") if name in self.outcomes]
        rows = [self.outcomes[name]["row"] for name in names]
        config = self.resolved.config
        results = {
            "title": config.title or f"Distillation on {config.data.name}",
            "summary": table.sentence(rows),
            "rows": rows,
            "reliability": {name: self.outcomes[name]["reliability"] for name in names},
            "seconds": {name: self.outcomes[name]["seconds"] for name in names},
            **record,
        }
        if jax.process_index() == 0:
            write_json(self.folder / "results.json", results)
            self.console.print(table.table(rows))
            self.console.print(results["summary"])
            self.console.print(f"The page: {page.write_page(self.folder)}")
        for stage in self.resolved.stages:
            self._write(stage, results)
        return Result(rows, {name: self.variables[name] for name in names}, self.folder)

    def _write(self, stage: Stage, results: Mapping[str, Any]) -> None:
        """Writes what was trained as a folder that transformers loads, if its family has such a format."""
        config, data = stage.planned.config, self.resolved.data
        form = form_of_spec(config.student.model)
        if form is not None:
            card = model_card(stage.name, config.to_dict(), results)
            tokenizer = data.tokenization.file.parent if data.tokenization else None
            variables, image = self.variables[stage.name], self.rows.get("image")
            images = config_of(self.resolved.config.data.augment, image.shape[1:], image.dtype) if image else None
            folder = self.folder / stage.planned.folder / "hub"
            write(folder, form.family, form.arguments, variables, card, tokenizer, images)
            self.console.print(f"{stage.name:>12}  written to {folder}")


def _outcome(name: str, cost: Mapping[str, Any], trained: Trained, seconds: float) -> dict[str, Any]:
    """What a model scored and costs: its row of the table, and what result.json says of it."""
    return {
        "row": {"name": name, **_nested(scores(trained.total)), **cost},
        "reliability": reliability(trained.total),
        "seconds": seconds,
        "compiled": trained.compiled,
    }


def _nested(scores: Mapping[str, float]) -> dict[str, Any]:
    """`cka/1:2` -> `cka: {"1:2": ...}`, as the page reads it; a score without a value (of no errors) is None."""
    known = {name: value if math.isfinite(value) else None for name, value in scores.items()}
    plain = {name: value for name, value in known.items() if "/" not in name}
    return {**plain, "cka": {name.removeprefix("cka/"): v for name, v in known.items() if name.startswith("cka/")}}
