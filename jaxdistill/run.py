"""A run: teachers without a checkpoint are trained, the student distilled, the control trained, all measured."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxdistill import apart, build, cached, fits, meshes, selected, sources, staged, teachers, workfolder
from jaxdistill.apart import Apart, Ask
from jaxdistill.build import Parts, Stage
from jaxdistill.cached import Cached
from jaxdistill.checkpoint import CheckpointError, load_variables, manifests, write_json
from jaxdistill.data.datasets import open_records
from jaxdistill.data.describe import Description
from jaxdistill.data.processors import config_of
from jaxdistill.data.stream import evaluation_batches
from jaxdistill.errors import ConfigError
from jaxdistill.evaluate import cost, evaluator, reliability, scores, totals
from jaxdistill.hub.write import write
from jaxdistill.interrupts import Interrupts, Stopped
from jaxdistill.models.pretrained import form_of_spec
from jaxdistill.parallel.compile import jit_evaluate, local_rows, place
from jaxdistill.parallel.sharding import DEFAULT_RULES, Rules, laid_out, shardings
from jaxdistill.provenance import provenance
from jaxdistill.report import page, table
from jaxdistill.report.card import card as model_card
from jaxdistill.train import Around, Data, Trained, train
from jaxdistill.types import NOTHING, Model, Variables


class Result(NamedTuple):
    """What a run gives back.

    rows: the table, one dict per model: name, accuracy, nll, ece, parameters, bytes, flops, latency_ms, and what was
        transferred
    variables: of every model, by the name of its row
    workdir: where all of it lies
    """

    rows: list[dict[str, Any]]
    variables: dict[str, Variables]
    workdir: Path


class Planned(NamedTuple):
    """A run whose config is known to be good.

    stages: with their parts
    described: the data, by stream
    mesh_shape: along data, fsdp, tensor
    caches: of the teachers that are read
    apart: the teachers on devices of their own
    """

    stages: list[tuple[Stage, Parts]]
    described: Mapping[str, Description]
    mesh_shape: tuple[int, int, int]
    caches: Mapping[str, Cached]
    apart: Mapping[str, Apart]

    @property
    def read(self) -> staged.Read:
        """The teachers whose outputs travel in the batch."""
        return {**self.caches, **self.apart}


def check(config: ConfigDict, workdir: str | Path) -> Planned:
    """Everything that can be known to be wrong before anything compiles.

    Raises:
        ConfigError: naming the path, the value and the cure.
    """
    workdir = Path(workdir)
    workfolder.check(workdir, config)
    mesh_shape = meshes.check_mesh(config, jax.device_count())
    planned = build.stages(config, workdir)
    for stage in planned:
        with _reported(stage):
            build.check_specs(stage.config)
    described = staged.described(config)
    caches = cached.find(config, described)
    described = {stream: described[stream] for stream in sources.splits(config)}  # one may be named test, too
    own = apart.find(config, described)
    read: staged.Read = {**caches, **own}
    stages, mesh = [], meshes.mesh(mesh_shape)
    for stage in planned:
        with _reported(stage):
            stages.append((stage, staged.parts(stage.config, described, mesh, read)))
    fits.check_vocabulary(config, sources.tokenization(config), described["train"].vocabulary)
    reference, shapes = _reference(stages), staged.shapes(config, described, read)["train"]
    build.check_checkpoints(config, apart.living(reference, own), shapes)
    build.check_used(config, reference, shapes)
    meshes.check_kernels(config, mesh)
    for stage, _ in stages:
        _check_reached(stage)
    return Planned(stages, described, mesh_shape, caches, own)


def distill(config: ConfigDict, workdir: str | Path, console: Console | None = None, source: str = "") -> Result:
    """Runs a config. A workdir with an unfinished run of the same config is resumed, to the bit.

    Args:
        config: from `jaxdistill.make(...)`, or of a config file.
        workdir: for checkpoints, logs, results.json and report.html.
        console: to draw on.
        source: the config file, kept with the results so that parts registered there are found again.

    Raises:
        ConfigError: before any compilation, for whatever is wrong with the config, the data, the mesh or the workdir.
        NonFiniteError, Stopped, CheckpointError: see `train.train`.
    """
    workdir, console = Path(workdir), console or Console(quiet=jax.process_index() > 0)
    planned = check(config, workdir)
    _keep_programs(config.logging.compilation_cache)
    record = {"config": config.to_dict(), "provenance": provenance(config.seed)}
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(workfolder.held(workdir))
            record |= workfolder.claim(workdir, record, source)
        run = Run(config, planned, console)
        selected.hold(workdir, config, run.data.chosen)
        interrupts = stack.enter_context(Interrupts())
        run.teachers_from_checkpoints()
        for stage, plan in planned.stages:
            run.stage(stage, plan, interrupts)
        if interrupts.asked:  # when the last stage was at its end already: a study of many runs must not go on
            raise Stopped("all models are trained; only the table and the page are missing")
        return run.finish(workdir, record, [stage for stage, _ in planned.stages])


def _keep_programs(folder: str) -> None:
    """Compiled programs are kept in a folder for the next run, from the command line as from Python."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        compilation_cache.reset_cache()  # JAX opens its cache at the first compilation, and never looks again


@contextlib.contextmanager
def _reported(stage: Stage) -> Iterator[None]:
    """Mistakes of a stage's config are told at the path of the run's where they were made."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(stage.origin(error.path), error.message) from None


def _reference(stages: list[tuple[Stage, Parts]]) -> Parts:
    return next(plan for stage, plan in stages if stage.name == "student")


def _check_reached(stage: Stage) -> None:
    reached = max(manifests(stage.folder / "checkpoints"), default=0)
    if reached > stage.config.steps:
        cure = f"Choose another --workdir, or --config.steps={reached} or more"
        raise ConfigError("steps", f"{stage.config.steps} are fewer than the {reached} of {stage.folder}. {cure}.")


class Run:
    """The stages of one run, and what they hand to each other: the teachers' variables."""

    def __init__(self, config: ConfigDict, planned: Planned, console: Console):
        self.config, self.console, self.reference = config, console, _reference(planned.stages)
        folder, name, tokens = sources.data_folder(config), config.data.name, config.data.tokens
        streams = {
            stream: open_records(name, split.text, folder, split.path, split.key, tokens)
            for stream, split in sources.splits(config).items()
        }
        test_set = open_records(name, config.data.test, folder, "data", "test", tokens)
        self.caches, self.apart, self.read = planned.caches, planned.apart, planned.read
        self.described = planned.described
        shapes = staged.shapes(config, planned.described, planned.read)
        chosen = selected.chosen(config, streams["train"])
        self.data = Data(streams, test_set, shapes, cached.open_beside(config, planned.caches), chosen)
        self.mesh = meshes.mesh(planned.mesh_shape)
        self.teachers: dict[str, Variables] = {}
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.variables: dict[str, Variables] = {}

    def teachers_from_checkpoints(self) -> None:
        """Loads and measures the teachers that are there already."""
        living = apart.living(self.reference, self.apart)
        for name, model in zip(living.teacher_names, living.teachers, strict=True):
            teacher = self.config.teachers[name]
            if teacher.steps and not teacher.checkpoint and not teacher.cache:  # it is trained here, in its own stage
                continue
            shapes = Variables(*jax.eval_shape(model.init, jax.random.key(0), self.data.shapes["train"]))
            if build.begins_here(self.config, name, self.reference.step):  # it is measured when it has become something
                rows = self.data.shapes["train"]
                self.teachers[name] = teachers.begin(self.config, name, model, shapes, self.mesh, rows)
                continue
            values = NOTHING if teacher.cache else teachers.load(self.config, name, model, shapes, self._mesh_of(name))
            trained = Trained(values, self._judge(name, model, values), {})
            self.keep(f"teacher {name}", model, trained, 0.0)

    def stage(self, stage: Stage, plan: Parts, interrupts: Interrupts) -> None:
        """Trains a stage, or takes it over if it was finished before."""
        if self._finished(stage, plan):
            self.console.print(f"{stage.name:>12}  was finished before, at step {stage.config.steps}")
            return
        start = time.perf_counter()
        beside = () if stage.name.startswith("teacher ") else self.placed()
        trained = train(stage.name, stage.folder, stage.config, plan, beside, self.around(stage, interrupts))
        outcome = self.keep(stage.name, plan.student, trained, time.perf_counter() - start)
        for name, model, values in zip(plan.teacher_names, plan.teachers, trained.teachers, strict=False):
            self.keep(f"teacher {name}", model, Trained(values, self._judge(name, model, values), {}), 0.0)
        if jax.process_index() == 0:
            write_json(stage.folder / "result.json", {**outcome, "step": stage.config.steps})

    def around(self, stage: Stage, interrupts: Interrupts) -> Around:
        """What a stage shares with the others, and of the data what it reads."""
        shapes = staged.shapes(stage.config, self.described, self.read)  # with its own augmentation
        written = self.data.beside if stage.config.teachers else {"test": self.data.beside["test"]}
        asked = {} if stage.name.startswith("teacher ") else self._asked
        asked = asked if stage.config.teachers else {stream: ask for stream, ask in asked.items() if stream == "test"}
        chosen = self.data.chosen if stage.config.data.select or stage.config.data.order else None
        data = self.data._replace(shapes=shapes, beside=written, chosen=chosen, apart=asked)
        return Around(data, self.mesh, self.reference, self.console, interrupts)

    def _finished(self, stage: Stage, plan: Parts) -> bool:
        """Takes over what an earlier run of this stage left, if it is complete and whole."""
        if plan.step.grown:  # its checkpoints hold teachers too, which only the loop restores
            return False
        try:
            outcome = json.loads((stage.folder / "result.json").read_text())
            if outcome["step"] != stage.config.steps:
                return False
            abstract = self._abstract(plan.student, stage.config.student.rules)
            variables = load_variables(stage.folder / "checkpoints", str(stage.config.steps), abstract)
        except (OSError, ValueError, KeyError, CheckpointError):  # the loop says what is damaged, and mends it
            return False
        self._remember(stage.name, outcome, variables)
        return True

    def placed(self) -> tuple[Variables, ...]:
        """The teachers in their order, each laid out on the mesh by its own table; those apart have nothing on it."""
        names = self.reference.teacher_names
        return tuple(NOTHING if name in self.apart else self._laid_out(name, self.teachers[name]) for name in names)

    def _laid_out(self, name: str, variables: Variables) -> Variables:
        return place(variables, self._mesh_of(name), self.config.teachers[name].rules or DEFAULT_RULES)

    def _mesh_of(self, name: str) -> Mesh:
        """Where a teacher runs."""
        return self.apart[name].mesh if name in self.apart else self.mesh

    @functools.cached_property
    def _asked(self) -> dict[str, Ask]:
        """Whom to ask about a batch, by stream, once all teachers are there; of student and control."""
        return apart.asks(self.apart, self.teachers, self.mesh)

    def _abstract(self, model: Model, rules: Rules) -> Variables:
        """Shapes of a model's variables, and how its rule table lays them out on the mesh."""
        values = Variables(*jax.eval_shape(model.init, jax.random.key(0), self.data.shapes["train"]))
        return laid_out(values, shardings(values, self.mesh, rules or DEFAULT_RULES))

    def _judge(self, name: str, model: Model, variables: Variables) -> dict[str, Any]:
        """The metrics of a teacher that was not trained here, as sums."""
        measure = evaluator(model, (), None, (), self.config.teachers[name].reads)
        mesh = self._mesh_of(name)
        evaluate = jit_evaluate(measure, variables, mesh)
        size = self.config.evaluate.batch_size
        fixed = self.reference.transforms["train"]
        rows = local_rows(mesh, size)
        said = self.data.beside["test"]
        batches = evaluation_batches(self.data.test, batch_size=size, rows=rows, transforms=fixed, beside=said)
        return totals(jax.device_get(evaluate(batch)) for batch in batches)

    def keep(self, name: str, model: Model, trained: Trained, seconds: float) -> dict[str, Any]:
        """Remembers a model and what it scored, for the table and for who learns from it; what result.json says."""
        cache = self.caches.get(name.removeprefix("teacher ")) if name.startswith("teacher ") else None
        costs = cache.cost if cache else self._cost(model, trained.variables)
        row = {"name": name, **_nested(scores(trained.total)), **costs}
        outcome = {
            "row": row,
            "reliability": reliability(trained.total),
            "seconds": seconds,
            "compiled": trained.compiled,
        }
        self._remember(name, outcome, trained.variables)
        return outcome

    def _remember(self, name: str, outcome: dict[str, Any], variables: Variables) -> None:
        teacher = name.removeprefix("teacher ")
        if teacher in self.apart and name != teacher:  # trained here, on the student's devices
            variables = self._laid_out(teacher, variables)
        self.outcomes[name], self.variables[name] = outcome, variables
        if name != teacher:
            self.teachers[teacher] = variables

    def _cost(self, model: Model, variables: Variables) -> dict[str, Any]:
        if jax.process_count() > 1:  # no process holds all of it
            return {"parameters": sum(x.size for x in jax.tree.leaves(variables.params))}
        here = jax.device_put(variables, jax.devices()[0])
        one = {key: np.zeros((1, *x.shape[1:]), x.dtype) for key, x in self.data.shapes["train"].items()}
        return cost(model, here, one)

    def _write(self, stage: Stage, results: Mapping[str, Any]) -> None:
        """What was trained, as a folder that transformers loads, if the world has a format for its family."""
        form = form_of_spec(stage.config.student.model)
        if form is not None:
            card = model_card(stage.name, stage.config.to_dict(), results)
            tokens = sources.tokenization(self.config)
            words = tokens.file.parent if tokens else None
            variables, seen = self.variables[stage.name], self.data.shapes["train"].get("image")
            images = config_of(self.config.data.augment, seen.shape[1:], seen.dtype) if seen else None
            write(stage.folder / "hub", form.family, form.arguments, variables, card, words, images)
            self.console.print(f"{stage.name:>12}  handed out in {stage.folder / 'hub'}")

    def finish(self, workdir: Path, record: Mapping[str, Any], stages: Sequence[Stage]) -> Result:
        """Writes results.json and report.html, prints the table, and hands out what was trained here."""
        names = [f"teacher {name}" for name in self.reference.teacher_names]
        names += [name for name in ("student", "control") if name in self.outcomes]
        rows = [self.outcomes[name]["row"] for name in names]
        results = {
            "title": self.config.title or f"Distillation on {self.config.data.name}",
            "summary": table.sentence(rows),
            "rows": rows,
            "reliability": {name: self.outcomes[name]["reliability"] for name in names},
            "seconds": {name: self.outcomes[name]["seconds"] for name in names},
            **record,
        }
        if jax.process_index() == 0:
            write_json(workdir / "results.json", results)
            self.console.print(table.table(rows))
            self.console.print(results["summary"])
            self.console.print(f"The page: {page.write_page(workdir)}")
        for stage in stages:
            self._write(stage, results)
        return Result(rows, {name: self.variables[name] for name in names}, workdir)


def _nested(scores: Mapping[str, float]) -> dict[str, Any]:
    """`cka/1:2` -> `cka: {"1:2": ...}`, as the page reads it; what cannot be told (agreement on no errors) is None."""
    told = {name: value if math.isfinite(value) else None for name, value in scores.items()}
    plain = {name: value for name, value in told.items() if "/" not in name}
    return {**plain, "cka": {name.removeprefix("cka/"): v for name, v in told.items() if name.startswith("cka/")}}
