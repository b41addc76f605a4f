"""Write trained models of a run in the formats of other runtimes, and measure the files on the run's test records."""

import contextlib
import datetime
import functools
import inspect
import itertools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdistill import __version__
from jaxdistill.core import registry, seal
from jaxdistill.core.atomic import remove_folder, replaced_folder
from jaxdistill.core.errors import ConfigError
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.evaluation.report import exports as report
from jaxdistill.evaluation.report import page
from jaxdistill.evaluation.report.formats import aligned
from jaxdistill.evaluation.report.table import FLOATS
from jaxdistill.export import exported_folder, model_folder
from jaxdistill.export.choice import check_model, choose
from jaxdistill.export.compare import compare, outputs_of
from jaxdistill.export.examples import Examples, test_examples, training_samples
from jaxdistill.export.measure import Difference, Job, Measured, is_installed, measure, package_of
from jaxdistill.export.network import Exporter, Network, network_of
from jaxdistill.export.predictor import Predictor, definition_of
from jaxdistill.run import workdir
from jaxdistill.run.config_files import load_config
from jaxdistill.run.outcomes import test_records
from jaxdistill.run.predict import load, results
from jaxdistill.run.predict import model_folder as folder_of
from jaxdistill.run.provenance import processor
from jaxdistill.run.resolve import resolve

EXPORTS = "exports"  # folder with exported files beside that of the model
DRAFTS = ".exports."  # prefix of unfinished folders
FAR = 0.002  # difference in accuracy between the run and now that no rounding explains
DEPARTS = {False: 1e-4, True: 0.1}  # by `Exporter.rounds`: difference of a hidden state that is named in an error


class Options(NamedTuple):
    """How files are measured.

    runtime: name of the runtime; empty: the first one of each format
    threads: processors that each file may use
    records: number of test records; 0: all
    trust_source: execute the Python file that the run has kept
    """

    runtime: str = ""
    threads: int = 1
    records: int = 0
    trust_source: bool = False


class Subject(NamedTuple):
    """A model to export.

    name: "student", "control" or "teachers/NAME"
    predictor: the trained model
    network: it as a function
    examples: test records
    expected: its outputs for them
    """

    name: str
    predictor: Predictor
    network: Network
    examples: Examples
    expected: np.ndarray


class File(NamedTuple):
    """A file that was written and is measured.

    subject: the model
    spec: spec string of the format
    exporter: the format
    job: the file and its runtime
    notes: sentences on what the file does not hold
    """

    subject: Subject
    spec: str
    exporter: Exporter
    job: Job
    notes: Sequence[str]


def export(run: Path, models: Sequence[str], formats: Sequence[str], options: Options) -> str:
    """Write models of a finished run in some formats, measure the files, and return a table of the results as text.

    Args:
        run: folder of the run.
        models: "student", "control" or "teachers/NAME".
        formats: spec strings of export formats, such as `onnx(int8='dynamic')`.
        options: how the files are measured.

    Raises:
        ConfigError: there is no such run, model, format or runtime; a package is missing; a model cannot be written in
            the format; or a file disagrees with its model.
    """
    finished, processors = results(run), len(os.sched_getaffinity(0))
    chosen = [(spec, choose(spec, options.runtime, "--to", "--runtime")) for spec in formats]
    exporters = {_slug(spec): (spec, exporter) for spec, exporter in chosen}
    if options.threads < 1:
        raise ConfigError("--threads", f"{options.threads} is not positive. Give 1 or more.")
    if options.records < 0:
        raise ConfigError("--records", f"{options.records} is negative. Give 0 for all test records, or more.")
    if options.threads > processors:
        raise ConfigError("--threads", f"{options.threads} are more than the {processors} processors of this process.")
    for name, (spec, exporter) in itertools.product(models, chosen):
        check_model(exporter, spec, name, definition_of(folder_of(run, name)), "--to")
    with workdir.locked(run, "RUN", "make it writable, or copy it to a place that is"):
        data = resolve(load_config(str(run / "config.json"), options.trust_source), jax.devices()).data
        _check_records(finished, data)
        subjects = [_subject(run, name, data, options) for name in dict.fromkeys(models)]
        for left in run.glob(f"{DRAFTS}*"):  # by a command that was killed
            remove_folder(left)
        with tempfile.TemporaryDirectory(prefix=DRAFTS, dir=run) as temporary:
            files = [
                _written(subject, spec, exporter, data, Path(temporary), options)
                for subject in subjects
                for spec, exporter in exporters.values()
            ]
            found = _measured(files, _references(subjects, Path(temporary)), options.threads)
            entries = []
            for subject in subjects:
                model = found.get(subject.name)
                entries += [_itself(subject, model)] if isinstance(model, Measured) else []
                own = [file for file in files if file.subject is subject]
                entries += [_finished(file, found[file.job.name], run, options.threads) for file in own]
        content = results(run)
        kept = {(entry["model"], entry["name"]): entry for entry in (*content.get("exports", ()), *entries)}
        seal.write(run / "results.json", {**content, "exports": list(kept.values())})
        page.write_page(run)
    text = f"{aligned([report.HEADING, *report.cells(entries)])}\n{report.circumstances(entries)}\n"
    good = [entry for entry in entries if entry["name"] != "-" and not entry["problem"]]
    text += "".join(f"{run / entry['model'] / EXPORTS / entry['name']}\n" for entry in good)
    if problems := [f"{entry['model']}: {entry['problem']}" for entry in entries if entry["problem"]]:
        sys.stdout.write(text)
        raise ConfigError("--to", " ".join(problems))
    return text


def _check_records(finished: Mapping[str, Any], data: Pipeline) -> None:
    """Check that the test records are those of the run.

    Raises:
        ConfigError: they have changed.
    """
    known = finished.get("test_records") or ""
    names = finished.get("class_names", [])
    if (known and known != test_records(data)) or names != list(data.class_names):
        problem = "the test records, or the names of the classes, have changed since the run has ended"
        raise ConfigError("RUN", f"{problem}. Restore the data, or train again.")


def _subject(run: Path, name: str, data: Pipeline, options: Options) -> Subject:
    predictor: Predictor = load(run, name)
    if predictor.about.dtype != "float32":
        sys.stderr.write(f"note: {name} was trained in {predictor.about.dtype}; it is exported in float32\n")
    network = network_of(predictor.float_model(), predictor.float_variables, predictor.about.inputs)
    network = network._replace(definition=definition_of(predictor.folder))
    examples = test_examples(network, data, predictor.about.batch_size, options.records)
    size, count = predictor.about.batch_size, len(examples.counts)
    expected = outputs_of(network, examples, size)
    subject, as_trained = Subject(name, predictor, network, examples, expected), expected
    if predictor.about.quantized:  # the run has evaluated it with the inputs of its products rounded
        whole = network_of(predictor.model, predictor.variables, predictor.about.inputs)
        as_trained = outputs_of(whole, examples, size)
    accuracy, row = _compared(subject, as_trained).accuracy, _row(run, name)
    all_records = count == data.test_description.records and predictor.about.dtype == "float32"
    if all_records and row.get("accuracy") is not None and abs(accuracy - row["accuracy"]) > FAR:
        problem = f"{name} has an accuracy of {100 * accuracy:.2f} %, and had {100 * row['accuracy']:.2f} % in the run"
        raise ConfigError("RUN", f"{problem}: its files, or the data, have changed. Repeat the command of the run.")
    return subject


def _row(run: Path, name: str) -> Mapping[str, Any]:
    """Return the row of a model in the result table of a run; empty: it has none."""
    rows = {row["name"]: row for row in results(run)["rows"]}
    return rows.get({"floats": FLOATS}.get(name, name.replace("teachers/", "teacher ")), {})


def _slug(spec: str) -> str:
    """Return a spec as the name of a folder, without defaults: `onnx(int8='dynamic')` becomes `onnx-int8-dynamic`."""
    factory, bound = registry.exporters.bind(spec, "--to")
    defaults = {name: each.default for name, each in inspect.signature(factory).parameters.items()}
    given = [f"{name}-{value}" for name, value in bound.arguments.items() if value != defaults[name]]
    return "-".join([factory.__name__, *given])


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Return a context manager that drops warnings: the quantizer of ONNX recommends a step that is not needed here."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _written(
    subject: Subject, spec: str, exporter: Exporter, data: Pipeline, temporary: Path, options: Options
) -> File:
    """Write a model in a format, with its preprocessing and class names."""
    folder = temporary / subject.name.replace("/", "-") / _slug(spec)
    folder.mkdir(parents=True)
    samples = functools.partial(training_samples, subject.network, data)
    with _without_warnings():
        notes = exporter.write(subject.network, folder / exporter.file, samples) or ()
    sys.stderr.writelines(f"note: {subject.name}, {spec}: {note}\n" for note in notes)
    for name in (model_folder.ABOUT, "tokenizer.json", *model_folder.TOKENIZER_FILES, "preprocessor_config.json"):
        if (subject.predictor.folder / name).is_file():
            shutil.copyfile(subject.predictor.folder / name, folder / name)
    rows = subject.predictor.about.batch_size if exporter.any_batch else 1
    job = Job(f"{subject.name}: {spec}", exporter.runtimes[0], folder / exporter.file, rows)
    return File(subject, spec, exporter, job, notes)


def _references(subjects: Sequence[Subject], temporary: Path) -> list[Job]:
    """Write the models themselves as programs of XLA, so that they are timed as the files are; empty: it cannot."""
    if not is_installed("flatbuffers"):
        return []
    exporter: Exporter = registry.exporters.build("stablehlo", "--to")
    jobs = []
    for subject in subjects:
        file = temporary / f"{subject.name.replace('/', '-')}.stablehlo"
        exporter.write(subject.network, file, tuple)
        jobs.append(Job(subject.name, "jax", file, subject.predictor.about.batch_size))
    return jobs


def _measured(files: Sequence[File], references: Sequence[Job], threads: int) -> dict[str, Measured | str]:
    """Measure all files of models that read the same fields in turns."""
    found: dict[str, Measured | str] = {}
    groups: dict[tuple[str, ...], list[Job]] = {}
    inputs = {}
    for file in files:
        key = (*file.subject.network.inputs, str(len(file.subject.examples.counts)))
        groups.setdefault(key, []).append(file.job)
        groups[key] += [job for job in references if job.name == file.subject.name and job not in groups[key]]
        inputs[key] = file.subject.examples.inputs
    for key, jobs in groups.items():
        found |= measure(jobs, inputs[key], threads)
    return found


def _compared(subject: Subject, outputs: np.ndarray) -> Difference:
    return compare(subject.network, subject.examples, subject.expected, outputs)


def _itself(subject: Subject, found: Measured) -> dict[str, Any]:
    """Return what was measured of a model itself, as that of a file."""
    size = sum(np.asarray(x).nbytes for x in jax.tree.leaves(subject.network.variables))
    numbers = _numbers(_compared(subject, found.outputs), size, found)
    return {"model": subject.name, "name": "-", "runtime": f"jax {jax.__version__}", "measured": numbers, "problem": ""}


def _numbers(compared: Difference, size: int, found: Measured) -> dict[str, Any]:
    plain = {name: None if np.isnan(value) else value for name, value in compared._asdict().items()}
    return {**plain, "bytes": size, "latency_ms": found.latency._asdict(), "memory": found.memory}


def _finished(file: File, found: Measured | str, run: Path, threads: int) -> dict[str, Any]:
    """Move a file to its place, or set it aside if it disagrees; return the content of its `export.json`."""
    subject, exporter, job = file.subject, file.exporter, file.job
    numbers: dict[str, Any] = {}
    if isinstance(found, Measured):
        size = sum(each.stat().st_size for each in job.file.parent.glob(f"{exporter.file}*"))
        compared = _compared(subject, found.outputs)
        problem = compared.problem(exporter.rounds)
        problem += _departure(file, compared.record) if problem else ""
        numbers = _numbers(compared, size, found)
    else:
        problem = found
    place = _folder(run, file)
    rejected = place.with_name(f"{place.name}.rejected")
    about = {
        "model": subject.name,
        "name": _slug(file.spec),
        "format": file.spec,
        "file": exporter.file,
        "rows": None if exporter.any_batch else 1,
        "reads": exporter.reads,
        "inputs": {name: [list(shape), dtype] for name, (shape, dtype) in subject.network.inputs.items()},
        "output": subject.network.output,
        "runtime": f"{job.runtime} {version(package_of(job.runtime))}",
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"jaxdistill": __version__, "jax": jax.__version__},
        "processor": processor(),
        "threads": threads,
        "records": len(subject.examples.counts),
        "measured": numbers,
        "notes": list(file.notes),
        "problem": f"{file.spec}: {problem}. The file is in {rejected}." if problem else "",
    }
    remove_folder(rejected)
    if problem:
        remove_folder(place)
    with replaced_folder(rejected if problem else place) as draft:
        for each in job.file.parent.iterdir():
            shutil.move(each, draft / each.name)
        exported_folder.write(draft, subject.predictor.class_names, about)
    return about


def _departure(file: File, record: int) -> str:
    """Return which hidden state is the first that differs, as the end of a sentence; empty: it is not known."""
    subject, exporter = file.subject, file.exporter
    if exporter.reads:
        return ""
    shapes = jax.eval_shape(subject.network.apply, subject.network.variables, subject.network.shapes(1))
    count = sum(name.startswith("hidden_states/") for name in shapes)
    states = [f"hidden_states/{number}" for number in range(count)]
    example = {name: x[record : record + 1] for name, x in subject.examples.inputs.items()}
    with tempfile.TemporaryDirectory(dir=file.job.file.parent) as folder:
        for state in states:
            network = subject.network._replace(output=state)
            expected = np.asarray(jax.jit(network.function)(example))
            place = Path(folder, exporter.file)
            with _without_warnings():
                exporter.write(network, place, lambda: [example])
            found = measure([Job(file.job.name, file.job.runtime, place, 1)], example, 1)[file.job.name]
            if not isinstance(found, Measured):
                return ""
            far = float(np.abs(found.outputs - expected).max() / max(np.abs(expected).max(), 1e-30))
            if not far <= DEPARTS[exporter.rounds]:
                return f"; {state} of {count} is the first that differs by more than {DEPARTS[exporter.rounds]:g}"
    return ""


def _folder(run: Path, file: File) -> Path:
    return run / file.subject.name / EXPORTS / _slug(file.spec)
