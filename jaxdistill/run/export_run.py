"""Write trained models of a run in the formats of other runtimes, and measure the files on the run's test records."""

import itertools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdistill.core import seal
from jaxdistill.core.atomic import remove_folder
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.notes import note
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.evaluation.report import exports as report
from jaxdistill.evaluation.report import page
from jaxdistill.evaluation.report.formats import aligned
from jaxdistill.evaluation.report.table import FLOATS
from jaxdistill.export.choice import check_model, choose, choose_device
from jaxdistill.export.definition import definition_of
from jaxdistill.export.device_profile import check_device
from jaxdistill.export.examples import test_examples
from jaxdistill.export.measure import Measured
from jaxdistill.export.network import network_of
from jaxdistill.export.output_difference import outputs_of
from jaxdistill.export.predictor import Predictor
from jaxdistill.run import workdir
from jaxdistill.run.config_files import load_config
from jaxdistill.run.export_files import (
    EXPORTS,
    Subject,
    Target,
    compare_outputs,
    finish_file,
    measure_files,
    model_entry,
    reference_jobs,
    slug,
    write_file,
)
from jaxdistill.run.outcomes import test_records
from jaxdistill.run.predict import find_model_folder, load, results
from jaxdistill.run.resolve import resolve

DRAFTS = ".exports."  # prefix of unfinished folders
MAX_ACCURACY_DRIFT = 0.002  # a larger difference from the accuracy of the run is no rounding


class Options(NamedTuple):
    """Settings for measuring files.

    runtime: name of the runtime that runs the files; empty for the default runtime of each format
    threads: processors that each file may use; 0 means the number in the profile of the device, or else one
    records: number of test records; 0 means all records
    trust_source: execute the Python file that the run has kept
    device: spec string of the device that the files are made for; empty if there is none
    """

    runtime: str = ""
    threads: int = 0
    records: int = 0
    trust_source: bool = False
    device: str = ""


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
    exporters = {slug(spec): (spec, exporter) for spec, exporter in chosen}
    target = Target(options.device, choose_device(options.device, "--device", formats)) if options.device else Target()
    threads = target.device.threads or options.threads or 1
    if options.threads and target.device.threads not in (0, options.threads):
        raise ConfigError("--threads", f"{options.threads} threads, and {options.device}: leave one of them out.")
    if options.records < 0:
        raise ConfigError("--records", f"{options.records} is negative. Give 0 for all test records, or more.")
    if threads > processors:
        raise ConfigError("--threads", f"{threads} are more than the {processors} processors of this process.")
    for name, (spec, exporter) in itertools.product(models, chosen):
        check_model(exporter, spec, name, definition_of(find_model_folder(run, name)), "--to")
        if options.device:
            check_device(target.device, options.device, spec, _parameters(run, name), name, "--device")
    with workdir.locked(run, "RUN", "make it writable, or copy it to a place that is"):
        data = resolve(load_config(str(run / "config.json"), options.trust_source), jax.devices()).data
        check_test_records(finished, data)
        subjects = [_subject(run, name, data, options) for name in dict.fromkeys(models)]
        for left in run.glob(f"{DRAFTS}*"):  # by a command that was killed
            remove_folder(left)
        with tempfile.TemporaryDirectory(prefix=DRAFTS, dir=run) as temporary:
            files = [
                write_file(subject, spec, exporter, data, Path(temporary))
                for subject in subjects
                for spec, exporter in exporters.values()
            ]
            results_by_job = measure_files(files, reference_jobs(subjects, Path(temporary)), threads)
            entries = []
            for subject in subjects:
                model = results_by_job.get(subject.name)
                entries += [model_entry(subject, model)] if isinstance(model, Measured) else []
                subject_files = [file for file in files if file.subject is subject]
                entries += [
                    finish_file(file, results_by_job[file.job.name], run, threads, target) for file in subject_files
                ]
        content = results(run)
        kept = {(entry["model"], entry["name"]): entry for entry in (*content.get("exports", ()), *entries)}
        seal.write(run / "results.json", {**content, "exports": list(kept.values())})
        page.write_page(run)
    text = f"{aligned(report.table(entries))}\n{report.circumstances(entries)}\n"
    text += "".join(f"{paragraph}\n" for paragraph in report.devices(entries))
    good = [entry for entry in entries if entry["name"] != "-" and not entry["problem"]]
    text += "".join(f"{run / entry['model'] / EXPORTS / entry['name']}\n" for entry in good)
    if problems := [f"{entry['model']}: {entry['problem']}" for entry in entries if entry["problem"]]:
        sys.stdout.write(text)
        raise ConfigError("--to", " ".join(problems))
    return text


def check_test_records(finished: Mapping[str, Any], data: Pipeline) -> None:
    """Require that the test records and class names have not changed since a run finished.

    Args:
        finished: content of the results.json of the run.
        data: data pipeline of the run, as it is now.

    Raises:
        ConfigError: the test records or the class names have changed.
    """
    known = finished.get("test_records") or ""
    names = finished.get("class_names", [])
    if (known and known != test_records(data)) or names != list(data.class_names):
        problem = "the test records, or the names of the classes, have changed since the run has ended"
        raise ConfigError("RUN", f"{problem}. Restore the data, or train again.")


def _subject(run: Path, name: str, data: Pipeline, options: Options) -> Subject:
    predictor: Predictor = load(run, name)
    if predictor.about.dtype != "float32":
        note(f"{name} was trained in {predictor.about.dtype}; it is exported in float32")
    network = network_of(predictor.float_model(), predictor.float_variables, predictor.about.inputs)
    network = network._replace(definition=definition_of(predictor.folder))
    examples = test_examples(network, data, predictor.about.batch_size, options.records)
    size, count = predictor.about.batch_size, len(examples.counts)
    expected = outputs_of(network, examples, size)
    subject, as_trained = Subject(name, predictor, network, examples, expected), expected
    if predictor.about.quantized:  # the run has evaluated it with the inputs of its products rounded
        whole = network_of(predictor.model, predictor.variables, predictor.about.inputs)
        as_trained = outputs_of(whole, examples, size)
    accuracy, row = compare_outputs(subject, as_trained).accuracy, _row(run, name)
    all_records = count == data.test_description.records and predictor.about.dtype == "float32"
    if all_records and row.get("accuracy") is not None and abs(accuracy - row["accuracy"]) > MAX_ACCURACY_DRIFT:
        problem = f"{name} has an accuracy of {100 * accuracy:.2f} %, and had {100 * row['accuracy']:.2f} % in the run"
        raise ConfigError("RUN", f"{problem}: its files, or the data, have changed. Repeat the command of the run.")
    return subject


def _parameters(run: Path, name: str) -> int:
    """Return the number of parameters of a model in the result table of a run; 0 if it is not known."""
    return int(_row(run, name).get("parameters") or 0)


def _row(run: Path, name: str) -> Mapping[str, Any]:
    """Return the row of a model in the result table of a run, as a dict; an empty dict if the model has no row."""
    rows = {row["name"]: row for row in results(run)["rows"]}
    return rows.get({"floats": FLOATS}.get(name, name.replace("teachers/", "teacher ")), {})
