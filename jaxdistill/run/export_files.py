"""Write trained models in the formats of other runtimes, run the files, and compare them with their models."""

import contextlib
import datetime
import functools
import inspect
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdistill import __version__
from jaxdistill.core import registry
from jaxdistill.core.atomic import remove_folder, replaced_folder
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.notes import note
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.export import exported_folder, model_folder
from jaxdistill.export.device_profile import Device
from jaxdistill.export.examples import Examples, training_samples
from jaxdistill.export.measure import Difference, Job, Measured, is_installed, measure, package_of
from jaxdistill.export.network import Exporter, Network
from jaxdistill.export.output_difference import compare
from jaxdistill.export.predictor import Predictor
from jaxdistill.run.provenance import processor

EXPORTS = "exports"  # folder with exported files beside that of the model
LAYER_TOLERANCE = {False: 1e-4, True: 0.1}  # by `Exporter.rounds`: relative difference of a layer that errors name


class Subject(NamedTuple):
    """A model to export.

    name: "student", "control" or "teachers/NAME"
    predictor: the trained model
    network: the model as a pure function of its variables and a batch
    examples: test records
    expected: the outputs of the model for these records, `[records, ...]`
    """

    name: str
    predictor: Predictor
    network: Network
    examples: Examples
    expected: np.ndarray


class File(NamedTuple):
    """A model that was written in an export format, and the measurement of this file.

    subject: the model
    spec: spec string of the format
    exporter: the format
    job: the measurement: path of the file, its runtime and the size of a batch
    notes: sentences on what the file does not hold
    """

    subject: Subject
    spec: str
    exporter: Exporter
    job: Job
    notes: Sequence[str]


class Target(NamedTuple):
    """The target device of exported files.

    spec: spec string of the device; empty if the user has named no device
    device: profile of the device, with the formats and sizes that it supports
    """

    spec: str = ""
    device: Device = Device()


def slug(spec: str) -> str:
    """Convert the spec string of an export format to a folder name, without the arguments that have their defaults.

    For example, `onnx(int8='dynamic')` becomes `onnx-int8-dynamic`.
    """
    factory, bound = registry.exporters.bind(spec, "--to")
    defaults = {name: each.default for name, each in inspect.signature(factory).parameters.items()}
    changed = [f"{name}-{value}" for name, value in bound.arguments.items() if value != defaults[name]]
    return "-".join([factory.__name__, *changed])


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Return a context manager that silences logged warnings, such as needless advice of the ONNX quantizer."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def write_file(subject: Subject, spec: str, exporter: Exporter, data: Pipeline, temporary: Path) -> File:
    """Write a model in an export format, with its preprocessing and class names, to a temporary folder.

    Args:
        subject: the model.
        spec: spec string of the format.
        exporter: the format.
        data: data pipeline of the run; activations on its training records give the ranges of integer quantisation.
        temporary: folder for unfinished files; the file gets a folder of its own in it.
    """
    folder = temporary / subject.name.replace("/", "-") / slug(spec)
    folder.mkdir(parents=True)
    samples = functools.partial(training_samples, subject.network, data)
    with without_warnings():
        notes = exporter.write(subject.network, folder / exporter.file, samples) or ()
    for text in notes:
        note(f"{subject.name}, {spec}: {text}")
    for name in (model_folder.ABOUT, "tokenizer.json", *model_folder.TOKENIZER_FILES, "preprocessor_config.json"):
        if (subject.predictor.folder / name).is_file():
            shutil.copyfile(subject.predictor.folder / name, folder / name)
    rows = subject.predictor.about.batch_size if exporter.any_batch else 1
    job = Job(f"{subject.name}: {spec}", exporter.runtimes[0], folder / exporter.file, rows)
    return File(subject, spec, exporter, job, notes)


def reference_jobs(subjects: Sequence[Subject], temporary: Path) -> list[Job]:
    """Write each model as a StableHLO file, so that it is timed like exported files; return the measurements to make.

    The list is empty if the package flatbuffers is not installed.
    """
    if not is_installed("flatbuffers"):
        return []
    exporter: Exporter = registry.exporters.build("stablehlo", "--to")
    jobs = []
    for subject in subjects:
        file = temporary / f"{subject.name.replace('/', '-')}.stablehlo"
        exporter.write(subject.network, file, tuple)
        jobs.append(Job(subject.name, "jax", file, subject.predictor.about.batch_size))
    return jobs


def measure_files(files: Sequence[File], references: Sequence[Job], threads: int) -> dict[str, Measured | str]:
    """Measure exported files and their models: outputs, latency and memory; see `export.measure`.

    Files of models with the same input fields are measured in turns.

    Returns:
        For each job, by name, the measurements, or a text that says how the process of a file has ended.
    """
    results: dict[str, Measured | str] = {}
    groups: dict[tuple[str, ...], list[Job]] = {}
    inputs = {}
    for file in files:
        key = (*file.subject.network.inputs, str(len(file.subject.examples.counts)))
        groups.setdefault(key, []).append(file.job)
        groups[key] += [job for job in references if job.name == file.subject.name and job not in groups[key]]
        inputs[key] = file.subject.examples.inputs
    for key, jobs in groups.items():
        results |= measure(jobs, inputs[key], threads)
    return results


def compare_outputs(subject: Subject, outputs: np.ndarray) -> Difference:
    """Compare the outputs of an exported file with those of its model."""
    return compare(subject.network, subject.examples, subject.expected, outputs)


def model_entry(subject: Subject, measured: Measured) -> dict[str, Any]:
    """Return the measurements of a model itself as a dict, in the form of those of an exported file."""
    size = sum(np.asarray(x).nbytes for x in jax.tree.leaves(subject.network.variables))
    numbers = _numbers(compare_outputs(subject, measured.outputs), size, measured)
    entry = {
        "model": subject.name,
        "name": "-",
        "runtime": f"jax {jax.__version__}",
        "measured": numbers,
        "problem": "",
    }
    return {**entry, "few_bits": bool(subject.predictor.about.quantized)}


def _numbers(compared: Difference, size: int, measured: Measured) -> dict[str, Any]:
    plain = {name: None if np.isnan(value) else value for name, value in compared._asdict().items()}
    return {**plain, "bytes": size, "latency_ms": measured.latency._asdict(), "memory": measured.memory}


def finish_file(file: File, measured: Measured | str, run: Path, threads: int, target: Target) -> dict[str, Any]:
    """Move an exported file to the folder of its run; return the content of its `export.json`, a dict.

    If it does not run, differs from its model or is too large for the device, it goes to a folder NAME.rejected.

    Args:
        file: the exported file.
        measured: the measurements of the file; or a text that says how the process that ran the file has ended.
        run: folder of the run.
        threads: number of processors that the file used.
        target: the device that the file is made for.
    """
    subject, exporter, job = file.subject, file.exporter, file.job
    numbers: dict[str, Any] = {}
    if isinstance(measured, Measured):
        size = sum(each.stat().st_size for each in job.file.parent.glob(f"{exporter.file}*"))
        compared = compare_outputs(subject, measured.outputs)
        problem = compared.problem(exporter.rounds)
        problem += _departure(file, compared.record) if problem else ""
        if not problem and target.device.memory and size > target.device.memory:
            problem = f"the file has {size / 1e6:.2f} MB, and {target.spec} has {target.device.memory / 1e6:g} MB"
        numbers = _numbers(compared, size, measured)
    else:
        problem = measured
    place = _folder_of(run, file)
    rejected = place.with_name(f"{place.name}.rejected")
    about = {
        "model": subject.name,
        "name": slug(file.spec),
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
    about["target"] = target.spec
    if target.device.inspect and not problem:
        about["device"] = _on_device(target, job.file)
    remove_folder(rejected)
    if problem:
        remove_folder(place)
    with replaced_folder(rejected if problem else place) as draft:
        for each in job.file.parent.iterdir():
            shutil.move(each, draft / each.name)
        exported_folder.write(draft, subject.predictor.class_names, about)
    return about


def _on_device(target: Target, file: Path) -> dict[str, Any]:
    """Return the report of the device's compiler on a file as a dict; if the compiler fails, it holds the error."""
    assert target.device.inspect is not None
    try:
        return {"name": target.spec, **target.device.inspect(file).as_json()}
    except ConfigError as error:
        return {"name": target.spec, "error": error.message}


def _departure(file: File, record: int) -> str:
    """Find the first hidden state in which a file differs from its model, and name it as the end of a sentence.

    Return an empty text if it cannot be found.
    """
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
            with without_warnings():
                exporter.write(network, place, lambda: [example])
            measured = measure([Job(file.job.name, file.job.runtime, place, 1)], example, 1)[file.job.name]
            if not isinstance(measured, Measured):
                return ""
            far = float(np.abs(measured.outputs - expected).max() / max(np.abs(expected).max(), 1e-30))
            if not far <= (bound := LAYER_TOLERANCE[exporter.rounds]):
                return f"; {state} of {count} is the first that differs by more than {bound:g}"
    return ""


def _folder_of(run: Path, file: File) -> Path:
    return run / file.subject.name / EXPORTS / slug(file.spec)
