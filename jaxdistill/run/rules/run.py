"""Rules about several parts of a run at once, its weights and its workdir, checked after all parts are built."""

import importlib.util
import json
from pathlib import Path

import jax

from jaxdistill.compress.axes import VOCABULARY
from jaxdistill.compress.cut import is_all
from jaxdistill.compress.quantize import dequantized_shapes
from jaxdistill.compress.vocabulary import required_tokens, unknown_token
from jaxdistill.core import bucket, checkpoint, manifest
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Factored
from jaxdistill.data.text import tokenizer as tokenizers
from jaxdistill.export import model_folder
from jaxdistill.models.abstract import has_pairs
from jaxdistill.models.hub.check import check_pretrained
from jaxdistill.models.pretrained import architecture_of_spec, network_argument
from jaxdistill.run import output_checks
from jaxdistill.run import workdir as workdirs
from jaxdistill.run.cut_specs import architecture, cut_of, source_of
from jaxdistill.run.hub_folders import HUB, columns_of
from jaxdistill.run.views import RunView
from jaxdistill.teachers.load import checkpoint_error
from jaxdistill.teachers.teacher import checkpoint_of, owner_of


def student_can_be_measured(run: RunView) -> None:
    """Require that the student can be evaluated: the test records have labels, or there is a teacher to compare with.

    A model with two towers (such as CLIP) is evaluated by the pairs of the records, and needs neither.
    """
    if "label" in run.data.test_description.fields or run.config.teachers or has_pairs(run.student.view.student):
        return
    problem = f"the test records of {run.data.name!r} have no field 'label', and there is no teacher"
    raise ConfigError("data.name", f"{problem}; add a teacher, or choose a data set with labels.")


def vocabularies_fit(run: RunView) -> None:
    """Require that the embedding table of every model has a row for each token of the model's tokenizer.

    Models whose table size is not known from the config are not checked. A model that reads two texts with one network
    must also have the same tokenizer for both.
    """
    tokenization = run.data.tokenization
    if tokenization is None:
        return
    size = run.data.vocabulary or 0
    for path, model in _models(run).items():
        other = tokenization.others.get(model.second_prefix)
        if other is not None and other != tokenization.file:
            problem = "the model reads both texts with one network, and their tokenizers differ"
            raise ConfigError(path, f"{problem}. Leave teacher= out of data.tokens.")
    others = {prefix: tokenizers.vocabulary_size(tokenizers.load(file)) for prefix, file in tokenization.others.items()}
    models = {"student.model": (run.student.definition.config.student.model, size)}
    for teacher in run.teacher_configs.values():
        models[f"{teacher.path}.model"] = (teacher.model, others.get(teacher.prefix, size))
    for path, (spec, tokens) in models.items():
        rows = _embedding_rows(spec, path)
        if rows is not None and rows < tokens:
            cure = "Use the tokenizer of this model, or one that `jaxdistill vocabulary` reduced for it"
            raise ConfigError(path, f"has an embedding of {rows} rows, the tokenizer {tokens} tokens. {cure}.")


def teachers_read_their_texts(run: RunView) -> None:
    """Require that a model reads the fields that `data.tokens` makes for teachers of another tokenizer or other texts.

    These fields are made if its arguments `teacher` or `teacher_fields` are set.
    """
    tokenization = run.data.tokenization
    if tokenization is None or not run.teachers:  # an arm of a study without teachers may keep the tokens of others
        return
    read = {model.second_prefix for model in _models(run).values()} | {each.prefix for each in run.teachers.values()}
    if unread := [prefix for prefix, file in tokenization.others.items() if prefix not in read]:
        problem = f"no model reads the fields {unread[0]!r}, which are made for a teacher"
        cure = f"Set teachers.NAME.reads to {unread[0]!r}, or leave teacher= and teacher_fields= out"
        raise ConfigError("data.tokens", f"{problem}. {cure}.")


def _models(run: RunView) -> dict[str, Model]:
    """Return the networks of the student and of the teachers, by config key."""
    teachers = {f"{teacher.path}.model": teacher.network for teacher in run.teachers.values()}
    return {"student.model": run.student.parts.student, **teachers}


def cut_vocabulary_has_tokens(run: RunView) -> None:
    """Require that the embedding table can be reduced, if the student is cut from a larger model (structured pruning).

    The data must be texts, and the table must not have been reduced before. The tokenizer needs an unknown token, and
    the smaller table a row for each special token.
    """
    cut = cut_of(run.config)
    if cut is None or is_all(cut.shares[VOCABULARY]):
        return
    tokenization, text = run.data.tokenization, run.config.student.model
    if tokenization is None:
        raise ConfigError("student.model", f"{text!r}: vocabulary= needs texts; set data.tokens.")
    if architecture(*source_of(run.config, cut)).arguments.get("tokens"):
        raise ConfigError("student.model", f"{text!r}: the embedding table was cut before. Cut it once, in the end.")
    tokenizer = json.loads(tokenization.file.read_text(encoding="utf-8"))
    if unknown_token(tokenizer) is None:
        cure = "Leave vocabulary= out, or reduce the tokenizer by `jaxdistill vocabulary`"
        raise ConfigError("student.model", f"{text!r}: the tokenizer has no unknown token. {cure}.")
    definition = next(each for each in run.definitions if each.kind == "student")
    rows, least = parse(definition.config.student.model, "").kwargs["vocabulary"], len(required_tokens(tokenizer))
    if rows < least:
        raise ConfigError("student.model", f"{text!r} keeps {rows} rows; the tokenizer has {least} special tokens.")


def categories_fit(run: RunView) -> None:
    """Require that the embedding table of categorical input features has a row for each value in the records.

    Records that are not in memory are not checked.
    """
    field = "categories"
    if field not in run.student.shapes["train"]:
        return
    streams = (run.data.streams["train"], run.data.test)
    numbers = [records.largest(field) for records in map(run.data.open, streams)]
    largest = max((number for number in numbers if number is not None), default=-1)
    specs = {"student.model": run.student.definition.config.student.model}
    specs |= {f"{teacher.path}.model": teacher.model for teacher in run.teacher_configs.values()}
    for path, spec in specs.items():
        rows = parse(spec, path).kwargs.get(field)
        if rows is not None and rows <= largest:
            problem = f"has a table of {rows} rows, and the records have category {largest}"
            raise ConfigError(path, f"{problem}. Set {field}={largest + 1}.")


def _embedding_rows(spec: str, path: str) -> int | None:
    """Return the number of rows of a model's token embedding table, or None if the spec string does not tell it."""
    if form := architecture_of_spec(spec, path):
        return form.arguments.get("vocabulary")
    parsed = parse(spec, path)
    if parsed.name == "cosine_head":
        return _embedding_rows(network_argument(parsed), path)
    if parsed.name == "towers":
        return _embedding_rows(network_argument(parsed, "texts", 1), path)
    return parsed.kwargs.get("tokens")


def packages_exist(run: RunView) -> None:
    """Require that the optional packages that the config needs are installed."""
    if run.config.logging.wandb and importlib.util.find_spec("wandb") is None:
        cure = "pip install 'jaxdistill[wandb]', or leave logging.wandb empty"
        raise ConfigError("logging.wandb", f"the package 'wandb' is not installed. {cure}.")


def pretrained_weights_fit(run: RunView) -> None:
    """Require that pretrained weights fit the networks of the student and of the teachers.

    If a teacher has no checkpoint and is not trained in this run, its pretrained weights must contain every parameter,
    including the classifier.
    """
    rows = run.student.shapes["train"]
    check_pretrained(run.student.parts.student, "student.model", rows, complete=False)
    for name, teacher in run.teachers.items():
        if teacher.runs:
            step_trains = run.student.view.initialised_here(name)
            untrained = not teacher.checkpoint and not teacher.steps and not step_trains
            check_pretrained(teacher.network, f"{teacher.path}.model", rows, complete=untrained)


def teacher_checkpoints_fit(run: RunView) -> None:
    """Require that each teacher's checkpoint exists, belongs to the named model, and fits the teacher's network.

    No array is read yet. The checkpoint of a teacher with cached outputs is not needed, and is not checked.
    """
    for teacher in run.teachers.values():
        if teacher.checkpoint and teacher.runs:
            values = dequantized_shapes(teacher.abstract(run.student.shapes["train"]))
            try:
                checkpoint.check_variables(*checkpoint_of(teacher.checkpoint), values, owner_of(teacher.checkpoint))
            except manifest.CheckpointError as error:
                raise checkpoint_error(teacher.path, teacher.checkpoint, error) from None


def teacher_checkpoints_know_the_data(run: RunView) -> None:
    """Require that a teacher from a checkpoint was trained on the same classes and numeric columns, in the same order.

    A run keeps the names of both beside its models, and they are compared with those of this run's data. Class names
    are not compared if the teacher has a map of classes (config key `teachers.NAME.classes`).
    """
    for teacher in run.teachers.values():
        folder = checkpoint_of(teacher.checkpoint)[0].parent / HUB if teacher.checkpoint else None
        if folder is None or not (folder / model_folder.ABOUT).is_file():
            continue
        about, key = model_folder.read_about(folder), f"{teacher.path}.checkpoint"
        theirs, ours = tuple(about.class_names), tuple(run.data.class_names)
        if theirs and ours and theirs != ours and not run.teacher_configs[teacher.name].class_map:
            shown = [", ".join(names[:8]) for names in (theirs, ours)]
            cure = f"Give the teacher's class for each of these in order, by {teacher.path}.classes"
            raise ConfigError(key, f"it was trained on the classes {shown[0]}, and the data have {shown[1]}. {cure}.")
        theirs, ours = (tuple(each.get("features", ())) for each in (about.columns, columns_of(run.config.data.name)))
        if theirs and ours and theirs != ours:
            problem = f"it was trained on the columns {', '.join(theirs)}, and the data have {', '.join(ours)}"
            raise ConfigError(key, f"{problem}. Name them in that order in data.name.")


def streams_are_read(run: RunView) -> None:
    """Require that every additional data stream (named source of batches) is read in the training of some model."""
    for stream in run.config.streams:
        if stream in run.student.parts.step.streams:
            continue
        read = {name for stage in run.stages for name in stage.parts.step.streams}
        if stream not in read:
            cure = f"{run.config.step!r} and the terms read {', '.join(sorted(read))}; leave it out"
            raise ConfigError(f"streams.{stream}", f"nothing reads it. {cure}.")


def roles_have_parameters(run: RunView) -> None:
    """Require that every role (group of parameters) with its own optimiser has parameters, when some model is trained.

    Such roles are set in the section `roles`. For example, the role `fusion` has no parameters if the fusion is
    `single()`. Teachers and the control (the same student trained without a teacher) have the optimisers of the
    student's roles, but not always their parameters.
    """
    for role in run.config.roles:
        if not any(jax.tree.leaves(stage.view.train_state.params.get(role, ())) for stage in run.stages):
            raise ConfigError(f"roles.{role}", f"the role {role!r} has no parameters; leave it out.")


def chunks_divide_a_factored_head(run: RunView) -> None:
    """Require that logits can be computed in chunks of a sequence, one after the other, if `chunks` is above 1.

    The student must be a language model, and `chunks` must divide the number of tokens in a sequence.
    """
    chunks = run.config.chunks
    if chunks == 1:
        return
    if not isinstance(run.student.view.student.logits, Factored):
        cure = "The student is not a language model such as decoder(...); leave chunks at 1"
        raise ConfigError("chunks", f"{chunks} chunks need logits that are computed chunk by chunk. {cure}.")
    length = run.student.shapes["train"]["mask"].shape[-1]
    if length % chunks:
        raise ConfigError(
            "chunks", f"{chunks} does not divide {length} tokens. Choose a divisor of the length in data.tokens."
        )


def kernels_have_chunks(run: RunView) -> None:
    """Require that `chunks` is 2 or more if the config asks for Pallas kernels.

    Such a kernel computes the losses of one chunk of a sequence at a time.
    """
    if run.config.kernels != "xla" and run.config.chunks == 1:
        cure = "Set chunks to 2 or more, or kernels='xla'"
        raise ConfigError("kernels", f"{run.config.kernels!r} computes the loss terms of chunks, and chunks=1. {cure}.")


def kernels_have_a_compiler(run: RunView) -> None:
    """Require that the devices are TPUs if the config asks for Pallas kernels."""
    platform = run.mesh.devices.flat[0].platform
    if run.config.kernels != "xla" and platform != "tpu":
        reason = f"{run.config.kernels!r} is compiled for TPUs, and these devices are of platform {platform!r}"
        raise ConfigError("kernels", f"{reason}. Set kernels='xla', which works everywhere.")


def workdir_can_be_written(run: RunView, workdir: Path) -> None:
    """Require that the folder of the run can be created and written; nothing is created yet."""
    if jax.process_index() == 0:
        output_checks.check_writable(workdir, "--workdir")
        if run.config.logging.compilation_cache:
            output_checks.check_writable(Path(run.config.logging.compilation_cache), "logging.compilation_cache")


def bucket_can_be_written(run: RunView, workdir: Path) -> None:
    """Require that each process can read and write the checkpoints' bucket; no checkpoint is written yet."""
    if run.config.checkpoints.bucket:
        bucket.require_writable(run.config.checkpoints.bucket, "checkpoints.bucket")


def workdir_holds_this_run(run: RunView, workdir: Path) -> None:
    """Require that the folder of the run (workdir) is new, or holds a run of the same config, which is then resumed.

    The config keys steps, logging, mesh, distributed and exports may differ from those of the run in the folder.
    """
    saved = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError("--workdir", f"{str(workdir)!r} is not a folder; choose another path.")
    old = workdirs.saved_record(workdir)
    if old is None:
        output_checks.check_no_other_folders(workdir, "--workdir")
        return
    if changed := workdirs.config_differences(old["config"], run.config):
        cure = f"Choose another --workdir, or resume that run with --config {saved}"
        raise ConfigError("--workdir", f"{str(workdir)!r} belongs to another config ({'; '.join(changed[:6])}). {cure}")


def steps_are_not_fewer_than_saved(run: RunView, workdir: Path) -> None:
    """Require that no checkpoint in the workdir has more training steps than the config sets for its model."""
    for stage in run.definitions:
        folder = workdir / stage.folder
        reached = max(manifest.manifests(folder / "checkpoints"), default=0)
        if reached > stage.config.steps:
            cure = f"Choose another --workdir, or --config.steps={reached} or more"
            problem = f"{stage.config.steps} steps are fewer than the {reached} of the checkpoint in {folder}"
            raise ConfigError(stage.origin("steps"), f"{problem}. {cure}.")
