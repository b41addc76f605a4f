"""Rules about a whole run, once its stages are resolved: what is used, and what is loaded."""

import json
from pathlib import Path

from jaxdistill.compress.quantize import widened
from jaxdistill.core import checkpoint
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Factored
from jaxdistill.data.text import tokenizer as tokenizers
from jaxdistill.models.hub.check import check_pretrained
from jaxdistill.models.pretrained import form_of_spec
from jaxdistill.run import workdir as workdirs
from jaxdistill.run.rules.stage import initialised_here
from jaxdistill.run.views import RunView
from jaxdistill.teachers.load import no_checkpoint
from jaxdistill.teachers.teacher import checkpoint_of


def vocabularies_fit(run: RunView) -> None:
    """Every pretrained architecture has a row of its embedding for each token that it reads."""
    how = run.data.tokenization
    if how is None:
        return
    size = run.data.vocabulary or 0
    others = {prefix: tokenizers.vocabulary(tokenizers.load(file)) for prefix, file in how.others.items()}
    models = {"student.model": (run.config.student.model, size)}
    for entry in run.entries.values():
        models[f"{entry.path}.model"] = (entry.model, others.get(entry.options.get("reads", ""), size))
    for path, (spec, tokens) in models.items():
        form = form_of_spec(spec, path)
        rows = form.arguments.get("vocabulary") if form else None
        if rows is not None and rows < tokens:
            cure = "Take the tokenizer of this network, or one cut for it (keep=)"
            raise ConfigError(path, f"has an embedding of {rows} rows, the tokenizer {tokens} tokens. {cure}.")


def pretrained_weights_fit(run: RunView) -> None:
    """Checkpoints that student and teachers start from fit them; a teacher that is not trained has every weight."""
    rows = run.student.shapes["train"]
    check_pretrained(run.student.parts.student, "student.model", rows, complete=False)
    for name, teacher in run.teachers.items():
        if teacher.runs:
            begins = initialised_here(run.student.view, name)
            untrained = not teacher.checkpoint and not teacher.steps and not begins
            check_pretrained(teacher.network, f"{teacher.path}.model", rows, complete=untrained)


def teacher_checkpoints_fit(run: RunView) -> None:
    """Every live teacher's checkpoint is whole, and of its model."""
    for teacher in run.teachers.values():
        if teacher.checkpoint and teacher.runs:
            values = widened(teacher.abstract(run.student.shapes["train"]))
            try:
                checkpoint.check_variables(*checkpoint_of(teacher.checkpoint), values)
            except checkpoint.CheckpointError as error:
                raise no_checkpoint(teacher.path, teacher.checkpoint, error) from None


def streams_are_read(run: RunView) -> None:
    """Every stream of the config is read by the step or a term."""
    for stream in run.config.streams:
        if stream not in run.student.parts.step.streams:
            read = ", ".join(sorted(run.student.parts.step.streams))
            cure = f"{run.config.step!r} and the terms read {read}; leave it out"
            raise ConfigError(f"streams.{stream}", f"nothing reads it. {cure}.")


def chunks_cut_a_factored_head(run: RunView) -> None:
    """Chunks cut the sequence of a student whose head is factored, evenly."""
    chunks = run.config.chunks
    if chunks == 1:
        return
    if not isinstance(run.student.view.student.logits, Factored):
        cure = "It is for language models, such as decoder(...); leave chunks at 1"
        raise ConfigError("chunks", f"{chunks} chunks of a head that is not factored. {cure}.")
    length = run.student.shapes["train"]["mask"].shape[-1]
    if length % chunks:
        raise ConfigError(
            "chunks", f"{chunks} do not divide {length} tokens. Choose a divisor of the length of data.tokens."
        )


def kernels_have_chunks(run: RunView) -> None:
    """A kernel computes the terms of chunks."""
    if run.config.kernels != "xla" and run.config.chunks == 1:
        cure = "Set chunks to how many there shall be, or kernels='xla'"
        raise ConfigError("kernels", f"{run.config.kernels!r} is for the chunks of a factored head. {cure}.")


def kernels_have_a_compiler(run: RunView) -> None:
    """The devices have a compiler for kernels: they are TPUs."""
    platform = run.mesh.devices.flat[0].platform
    if run.config.kernels != "xla" and platform != "tpu":
        why = f"{run.config.kernels!r} is compiled for TPUs, and these devices are of platform {platform!r}"
        raise ConfigError("kernels", f"{why}. Set kernels='xla', which computes the terms chunk by chunk everywhere.")


def workdir_holds_this_run(run: RunView, workdir: Path) -> None:
    """A workdir that holds a run holds this one; steps, logging, mesh and processes may differ."""
    saved = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError("--workdir", f"{str(workdir)!r} is no folder; choose another.")
    if not saved.is_file():
        return
    try:
        old = json.loads(saved.read_text())["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("--workdir", f"{saved} is not a saved config ({error}); choose another folder.") from None
    if changed := workdirs.changes(old, run.config):
        cure = f"Choose another --workdir, or go on with --config {saved}"
        raise ConfigError("--workdir", f"{str(workdir)!r} belongs to another config ({'; '.join(changed[:6])}). {cure}")


def steps_are_not_behind(run: RunView, workdir: Path) -> None:
    """No stage has fewer steps than its workdir has reached."""
    for stage in run.planned:
        folder = workdir / stage.folder
        reached = max(checkpoint.manifests(folder / "checkpoints"), default=0)
        if reached > stage.config.steps:
            cure = f"Choose another --workdir, or --config.steps={reached} or more"
            raise ConfigError(
                stage.origin("steps"), f"{stage.config.steps} are fewer than the {reached} of {folder}. {cure}."
            )
