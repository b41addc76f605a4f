"""Run a config: train its untrained teachers, distil the student, train a control, and evaluate all models.

The control is the student's network trained without teachers. Each of these trainings is a stage of the run.
"""

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxdistill.compress.masks import zeros
from jaxdistill.core import seal
from jaxdistill.core.checkpoint import load_variables
from jaxdistill.core.errors import DamageError, Stopped
from jaxdistill.core.interfaces import Model
from jaxdistill.core.manifest import check_owner, manifests
from jaxdistill.core.types import Variables
from jaxdistill.data.pipeline import TEST
from jaxdistill.evaluation.report import page, table
from jaxdistill.evaluation.report.table import FLOATS, ROUNDED
from jaxdistill.parallel.compile import keep_programs
from jaxdistill.parallel.sharding import shardings, with_shardings
from jaxdistill.run import cutting, hub_folders, result_file, subset, workdir
from jaxdistill.run.config import Config, differ
from jaxdistill.run.evaluate_existing import evaluate, rounded_afterwards
from jaxdistill.run.outcomes import (
    Result,
    Timed,
    add_latencies,
    comparison,
    constant_answer,
    continued,
    details,
    outcome_of,
)
from jaxdistill.run.preemption import Preemption
from jaxdistill.run.provenance import provenance
from jaxdistill.run.record_identity import check_inputs
from jaxdistill.run.resolve import Resolved, resolve
from jaxdistill.run.stages import Stage
from jaxdistill.run.train import Data, References, StageContext, Trained, open_data, train
from jaxdistill.teachers.load import initialise, load
from jaxdistill.teachers.submesh import join_queries
from jaxdistill.teachers.teacher import Query, Teacher, cost_of


def check_config(config: Config, folder: str | Path | None) -> Resolved:
    """Check a config against every rule, without compiling anything, and return the objects that the config describes.

    These are the data, the device mesh, the teachers, and the training stages (one for each model to train).

    Args:
        config: a complete config.
        folder: folder of the run, which must be new or hold a run of the same config; None if there is none.

    Raises:
        ConfigError: the config breaks a rule; the message names the key, the value and the cure.
    """
    resolved = resolve(config, jax.devices())
    if folder is not None:
        resolved.check_workdir(Path(folder))
    _ = resolved.stages
    resolved.check_run()
    resolved.check_weights()
    resolved.check_memory()
    return resolved


def distill(config: Config, folder: str | Path, console: Console | None = None, source: str = "") -> Result:
    """Train the models that a config describes, evaluate them, and write a report.

    The models are the teachers, the student, and the control: the same student trained without a teacher. If the folder
    holds an unfinished run of the same config, this run is resumed, with the same result to the bit.

    Args:
        config: a complete config, from `jaxdistill.make(...)` or `jaxdistill.load_config(...)`.
        folder: the workdir, for checkpoints, logs, results.json and report.html.
        console: where progress is printed; None means the standard output of process 0.
        source: file path of the Python file that defines the config; empty if there is none. A copy is kept in the
            workdir, because the config may name losses, models or data sets that this file registers.

    Raises:
        ConfigError: the config, the data, the mesh or the workdir break a rule; raised before any compilation.
        NonFiniteError: a loss or the parameters became NaN or infinite; earlier checkpoints are intact.
        Stopped: the run was stopped by SIGTERM or Ctrl-C; the training state is saved.
        CheckpointError: the workdir has checkpoints, but none can be used.
    """
    folder, console = Path(folder), console or Console(quiet=jax.process_index() > 0)
    resolved = check_config(config, folder)
    config = resolved.config
    keep_programs(config.logging.compilation_cache)
    record, finished = {"config": config.to_dict(), "provenance": provenance(config.seed)}, {}
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(workdir.locked(folder))
            finished = workdir.finished_record(folder)
        inputs = check_inputs(folder, resolved.data, resolved.teachers, config)
        data = open_data(resolved.data, resolved.teachers.values())
        selection = subset.check_selection(folder, resolved.data, data.chosen)
        workdir.meet()
        if jax.process_index() == 0:  # only after all checks, so that a refused command changes nothing
            record |= workdir.write_config(folder, record, source)
            for file, content in {**inputs, **selection}.items():
                seal.write(file, {**content, "run": record["run"]})
        run = Run(resolved, data, folder, console, record | {"run": workdir.agreed_name(record.get("run", ""))})
        preemption = stack.enter_context(Preemption())
        run.load_teachers()
        for stage in resolved.stages:
            run.stage(stage, preemption)
        if preemption.signal_name:  # a signal after the last step must also stop a study of several runs
            raise Stopped("all models are trained; only the table and the page are missing")
        if not run.trained and finished:  # the record names what trained the models
            seal.write(folder / "config.json", finished["config.json"])
            run.keep_record_of(finished["results.json"])
        return run.finish()


class Run:
    """A run in progress: trains the models one after the other, and keeps the variables and scores of all models.

    The models are teachers, the student, and the control (the same student trained without a teacher).

    Args:
        resolved: data, mesh, teachers and training stages (one for each model to train), from `resolve(config)`.
        data: the records, opened for reading, and the outputs of teachers for them.
        folder: the workdir, for checkpoints, logs, results.json and report.html.
        console: where progress is printed.
        record: what results.json gets besides the results: config, versions, and the config's Python file.
    """

    def __init__(self, resolved: Resolved, data: Data, folder: Path, console: Console, record: Mapping[str, Any]):
        self.resolved, self.data, self.folder, self.console, self.record = resolved, data, folder, console, record
        self.cutter = cutting.Cutter(resolved, folder, self.data, console)
        self.trained = False  # whether it has trained a model
        self.earlier_rows: list[dict[str, Any]] = []  # the table of the same run, if it was finished before
        self.earlier_exports: list[dict[str, Any]] = []  # and what was measured of its files
        self.exported: dict[Path, hub_folders.Export] = {}  # the models that this process has written
        self.timed: dict[str, Timed] = {}  # what is timed for each model that this process can run, by row name
        self.values: dict[str, Variables] = {}  # of teachers, by teacher name
        self.untrained: dict[str, Variables] = {}  # the same, before the student's training
        self.outcomes: dict[str, dict[str, Any]] = {}  # scores and costs of models, by row name
        self.variables: dict[str, Variables] = {}  # of models, by row name

    @property
    def rows(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Return the shapes and dtypes of the student's training batch, by field, such as `image` and `label`."""
        return self.resolved.student.shapes["train"]

    def keep_record_of(self, results: Mapping[str, Any]) -> None:
        """Take over provenance, result table and exports from the results.json that this run wrote before."""
        self.record = {key: results[key] for key in self.record if key in results}
        self.earlier_rows, self.earlier_exports = results.get("rows", []), results.get("exports", [])

    def load_teachers(self) -> None:
        """Load and evaluate the teachers that exist before the run, from a checkpoint, a pretrained model or a cache.

        A teacher without weights that is trained together with the student is initialised here, and evaluated
        afterwards.
        """
        for name, teacher in self.resolved.teachers.items():
            if teacher.trained_here:
                continue
            if self.resolved.student.view.initialised_here(name):  # evaluated after the step has trained it
                self.values[name] = initialise(teacher, self.rows)
                continue
            self._evaluate_teacher(teacher, load(teacher, self.rows) if teacher.runs else teacher.delivered())

    def _evaluate_teacher(self, teacher: Teacher, values: Variables) -> None:
        """Evaluate a teacher outside of a stage that trains it, and record its scores, cost and variables."""
        total = evaluate(teacher.network, values, teacher.mesh, self.resolved.student, self.data, teacher.prefix)
        evaluated = Trained(values, total, {}, 0.0, {})
        cost = teacher.cost(values, self.rows)
        self._record_teacher(teacher, outcome_of(f"teacher {teacher.name}", cost, evaluated), values)

    def stage(self, stage: Stage, preemption: Preemption) -> None:
        """Train one model of the run, or load the trained model if an earlier, interrupted run has finished it.

        Args:
            stage: the training of a teacher, the student or the control (the same student trained without a teacher).
            preemption: reports after each training step whether SIGTERM or Ctrl-C has asked the run to stop.
        """
        folder = self.folder / stage.definition.folder
        if stage.kind == "student":
            self.untrained = dict(self.values)  # the student in floats learns from them, too
        if self._load_finished(stage, folder):
            self.console.print(f"{stage.name:>12}  was already finished, at step {stage.settings.steps}")
            return
        teachers = () if stage.kind == "teacher" else self._arguments(stage)
        trained = train(stage, folder, teachers, self._context(stage, preemption))
        self.trained = True
        cost = cost_of(stage.parts.student, trained.variables, self.rows)
        if stage.definition.config.student.masks:
            cost["zeros"] = zeros(trained.variables.params)
        outcome = outcome_of(stage.name, cost, trained)
        self._record(stage, outcome, trained.variables)
        self._export(
            stage.definition.folder, stage.name, stage.definition.config, stage.parts.student, trained.variables
        )
        evolved = trained.teachers if stage.kind == "student" else ()
        for number, (teacher, values) in enumerate(zip(stage.parts.teachers, evolved, strict=False)):
            self._evaluate_teacher(teacher, values)
            is_unmodified = not teacher.options  # else its network is not the one that its spec describes
            if is_unmodified and number in stage.parts.step.trained_teachers:
                config = differ(stage.definition.config, student={"model": teacher.spec, "quantized": "", "masks": ""})
                self._export(Path("teachers", teacher.name), f"teacher {teacher.name}", config, teacher.network, values)
        if jax.process_index() == 0:
            result_file.write(folder, stage.name, self.record["run"], outcome, stage.settings.steps)

    def _context(self, stage: Stage, preemption: Preemption) -> StageContext:
        """Return the data, mesh and teachers for a stage (the training of one model).

        Cached and queried teacher outputs for the training batches are left out if the stage has no teachers.
        """
        has_teachers = bool(stage.parts.teachers)
        only = lambda by_stream: by_stream if has_teachers else {TEST: by_stream[TEST]} if TEST in by_stream else {}
        queries = {} if stage.kind == "teacher" else self._queries
        chosen = self.data.chosen if stage.data.select or stage.data.order else None
        data = self.data._replace(stored=only(self.data.stored), queries=only(queries), chosen=chosen)
        references = References(tuple(t.model for t in self.resolved.teachers.values()), self.resolved.reference)
        start, name = self.cutter.start(stage, self.values), self.record.get("run", "")
        return StageContext(data, self.resolved.mesh, references, self.console, preemption, start, name)

    @functools.cached_property
    def _queries(self) -> dict[str, Query]:
        """Return a dict by stream (a source of batches): functions that add outputs of sub-mesh teachers to a batch.

        All teachers must have been loaded or trained before.
        """
        by_stream = {}
        for stream in self.resolved.data.with_test:
            queries = {
                name: query
                for name, teacher in self.resolved.teachers.items()
                if (query := teacher.query(stream, self.values[name], self.resolved.mesh))
            }
            if queries:
                by_stream[stream] = join_queries(queries)
        return by_stream

    def _load_finished(self, stage: Stage, folder: Path) -> bool:
        """Load the trained model of a stage from the workdir; return False if it is missing, unfinished or damaged."""
        if stage.parts.step.evolve_teachers:  # only the training loop restores the teachers that it trained
            return False
        try:
            name = self.record.get("run", "")
            outcome = result_file.read(folder, stage.name, name)
            if outcome["step"] != stage.settings.steps:
                return False
            place, model = folder / "checkpoints", stage.parts.student
            check_owner(place, manifests(place).get(outcome["step"], {}), stage.name, name)
            shapes = Variables(*jax.eval_shape(model.init, jax.random.key(0), stage.shapes["train"]))
            abstract = with_shardings(shapes, shardings(shapes, self.resolved.mesh, stage.settings.rules))
            variables = load_variables(place, str(stage.settings.steps), abstract)
        except FileNotFoundError:
            return False
        except DamageError as error:  # the training loop looks for another checkpoint, and makes result.json again
            self.console.print(f"{stage.name:>12}  {error}", soft_wrap=True)
            return False
        self._record(stage, outcome, variables)
        return True

    def _arguments(self, stage: Stage) -> tuple[Variables, ...]:
        """Return the variables of all teachers in the form that the training step takes, in the order of the config."""
        values = self.untrained if stage.definition.learns_from_teachers else self.values
        return tuple(teacher.argument(values[name]) for name, teacher in self.resolved.teachers.items())

    def _record(self, stage: Stage, outcome: dict[str, Any], variables: Variables) -> None:
        if stage.kind == "teacher":
            self._record_teacher(self.resolved.teachers[stage.definition.teacher], outcome, variables)
        else:
            self.outcomes[stage.name], self.variables[stage.name] = outcome, variables
            config = stage.definition.config
            kind = (config.student.model, config.student.quantized, config.dtype)
            self.timed[stage.name] = Timed(kind, stage.parts.student, variables)
        if stage.kind == "floats":
            rounded = rounded_afterwards(stage, self.resolved, variables, self.data)
            self.outcomes[ROUNDED], self.variables[ROUNDED] = rounded

    def _record_teacher(self, teacher: Teacher, outcome: dict[str, Any], variables: Variables) -> None:
        """Record the scores and cost of a teacher, and place its variables on the devices that it runs on."""
        name = f"teacher {teacher.name}"
        values = teacher.shard(variables)
        self.outcomes[name], self.variables[name], self.values[teacher.name] = outcome, values, values
        if teacher.runs:
            kind = (teacher.spec, teacher.dtype, *map(str, teacher.options.items()))
            self.timed[name] = Timed(kind, teacher.network, values)

    def finish(self) -> Result:
        """Write results.json and report.html, print the result table, and complete the folders of the models."""
        if jax.process_count() == 1:
            add_latencies(self.outcomes, self.timed, self.rows, [] if self.trained else self.earlier_rows)
            self.cutter.restore(self.resolved.student, self.untrained)
        results = self._results() | details(self.resolved.data, self.outcomes)
        results["exports"] = [] if self.trained else self.earlier_exports
        if jax.process_index() == 0:
            seal.write(self.folder / "results.json", results)
            self.console.print(table.table(results["rows"]))
            self.console.print(results["summary"])
            for model, reason in results["left_out"].items():
                self.console.print(f"There is no {model}: {reason}.", soft_wrap=True)
            self.console.print(f"Report: {page.write_page(self.folder)}")
        for stage in self.resolved.stages:
            place = stage.definition.folder
            written = hub_folders.Export(stage.name, stage.definition.config, stage.parts.student)
            run = self.record.get("run") or ""
            if place not in self.exported and not hub_folders.is_complete(self.folder / place, stage.name, run):
                self._export(place, *written, self.variables[stage.name])
            self.exported[place] = written
        for place, export in self.exported.items():
            if jax.process_index() == 0:
                hub_folders.write_card(self.folder / place, export, self.resolved.data, self.rows, results)
            self.console.print(f"{export.name:>12}  written to {self.folder / place / hub_folders.HUB}")
        variables = {row["name"]: self.variables[row["name"]] for row in results["rows"]}
        return Result(results["rows"], variables, self.folder)

    def _results(self) -> dict[str, Any]:
        """Return the content of results.json, with the models that are trained until now."""
        names = [*(f"teacher {name}" for name in self.resolved.teachers), "student", FLOATS, ROUNDED, "control"]
        outcomes = {name: self.outcomes[name] for name in names if name in self.outcomes}
        rows, config = [outcome["row"] for outcome in outcomes.values()], self.resolved.config
        class_names = list(self.resolved.data.class_names)
        notes = comparison(outcomes), constant_answer(outcomes, class_names)
        sentences = [cutting.sentence(self.folder), continued(self.record.get("earlier", ()), config.steps)]
        if "student" in outcomes:
            sentences.insert(0, table.sentence(rows, *notes))
        return {
            "title": config.title or f"Distillation on {config.data.name}",
            "summary": " ".join(filter(None, sentences)) if "student" in outcomes else "",
            "rows": rows,
            "reliability": {name: outcome["reliability"] for name, outcome in outcomes.items()},
            "seconds": {name: outcome["seconds"] for name, outcome in outcomes.items()},
            "log": {name: outcome.get("log", {}) for name, outcome in outcomes.items()},
            "class_names": class_names,
            "data": self.resolved.data.summary(),
            "unused_splits": self.resolved.data.unused_splits,
            "left_out": self.resolved.left_out,
            **self.record,
        }

    def _export(self, place: Path, name: str, config: Config, model: Model, variables: Variables) -> None:
        """Write a trained model to its folder, with a model card that `finish` completes; see `hub_folders`."""
        self.exported[place] = export = hub_folders.Export(name, config, model)
        hub_folders.write_model(self.folder / place, export, variables, self.resolved.data, self.rows, self._results())
