"""Rules about the spec strings in the config of a training stage, checked before any data are read.

A spec string names a registered part with its arguments, such as "kd(temperature=4.0)".
"""

from jaxdistill.core import manifest, registry, seal
from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.core.schedules import Horizon, Schedule, as_schedule
from jaxdistill.core.spec import parse
from jaxdistill.models.build import build_model
from jaxdistill.models.derivatives import GRADIENTS
from jaxdistill.run.parts import build_quantizer, step_converters, step_spec
from jaxdistill.run.views import StageConfigView
from jaxdistill.teachers.cache import parse_encoding
from jaxdistill.teachers.load import checkpoint_error
from jaxdistill.teachers.teacher import checkpoint_of

NEEDS = GRADIENTS | {"teacher", "alignment", "samples"}  # what a term may require (`Term.needs`)


def objective_has_terms(view: StageConfigView) -> None:
    """Require that the objective has at least one loss term."""
    if not view.components.terms:
        raise ConfigError("objective", f"has no terms. Add at least one; known losses: {', '.join(registry.losses)}.")


def rates_are_not_negative(view: StageConfigView) -> None:
    """Require that all learning rates, the student's and those of the section `roles`, are 0 or more at every step."""
    config, components = view.config, view.components
    rates = {"rate": (config.rate, components.rate)}
    rates |= {f"roles.{role}.rate": (config.roles[role].rate, rate) for role, rate in components.role_rates.items()}
    for path, (value, rate) in rates.items():
        if rate.low < 0:
            raise ConfigError(path, f"{value!r} reaches {rate.low:g}; a learning rate is 0 or more.")


def weights_are_not_negative(view: StageConfigView) -> None:
    """Require that the weights of all loss terms are 0 or more at every step: a loss is minimised, never maximised."""
    for name, (_, weight, _) in view.components.terms.items():
        low = as_schedule(weight).low
        if low < 0:
            value = view.config.objective[name].weight
            raise ConfigError(f"objective.{name}.weight", f"{value!r} reaches {low:g}; a loss weight is 0 or more.")


def step_is_known(view: StageConfigView) -> None:
    """Require that the training algorithm (config key `step`) exists and takes the arguments that the config sets."""
    # arguments are bound, and the factory is not called
    placeholders = {"student": None, "teachers": (), "objective": None, "optimizer": None}
    horizon = Horizon(view.config.steps, view.config.steps)
    registry.steps.bind(step_spec(view.config, placeholders), "step", step_converters(horizon))


def models_are_known(view: StageConfigView) -> None:
    """Require that the models and the options of teachers exist and take the arguments that the config sets."""
    build_model(view.config.student.model, "student.model", view.config.dtype)
    build_quantizer(view.config)
    for teacher in view.teacher_configs.values():
        teacher.check_specs()


def teachers_can_be_trained_here(view: StageConfigView) -> None:
    """Require that no teacher that this run trains has an option that makes training impossible.

    For example, the 8-bit weights of the option `quantized` have no gradient.
    """
    for teacher in view.teacher_configs.values():
        if teacher.trained_here and (lack := teacher.lacks("training")):
            option, reason = lack
            cure = f"Leave it out, or train the teacher in a separate run and set {teacher.path}.checkpoint to that run"
            raise ConfigError(f"{teacher.path}.{option}", f"this run trains the teacher, and {reason}. {cure}.")


def checkpoints_exist(view: StageConfigView) -> None:
    """Require that the checkpoint of every teacher exists, unless the teacher's outputs are cached."""
    for teacher in view.teacher_configs.values():
        if teacher.checkpoint and not teacher.cache:
            try:
                manifest.choose_step(*checkpoint_of(teacher.checkpoint))
            except manifest.CheckpointError as error:
                raise checkpoint_error(teacher.path, teacher.checkpoint, error) from None


def teachers_are_in_floats(view: StageConfigView) -> None:
    """Require that no teacher is loaded from a student or control that had quantisation-aware training.

    Such a checkpoint holds the weights before rounding, but the model was evaluated only with rounded weights.
    """
    for teacher in view.teacher_configs.values():
        if not teacher.checkpoint:
            continue
        stage = checkpoint_of(teacher.checkpoint)[0].parent
        try:
            config = seal.read(stage.parent / "config.json", {}).get("config")
        except FileNotFoundError:  # a checkpoint that was moved out of its run
            continue
        # a config.json of another program has no such keys
        student = config.get("student") if isinstance(config, dict) else None
        if isinstance(student, dict) and student.get("quantized") and stage.name in ("student", "control"):
            problem = f"{teacher.checkpoint!r} was trained with student.quantized={student['quantized']!r}"
            cure = f"Set it to {stage.parent}/floats, the same student trained in floats"
            if (stage / "hub" / "config.json").is_file():
                cure += f"; or set {teacher.path}.model=pretrained('{stage}/hub'), which has the rounded weights"
            raise ConfigError(f"{teacher.path}.checkpoint", f"{problem}. {cure}.")


def needs_are_known(view: StageConfigView) -> None:
    """Require that every requirement in `Term.needs` of a loss term, such as "teacher", is known to the library.

    Losses that the user's own code registers may have other values.
    """
    for name, (term, *_) in view.components.terms.items():
        if isinstance(term.needs, str):
            raise ConfigError(
                f"objective.{name}", f"needs={term.needs!r} is a text. Give frozenset({{{term.needs!r}}})."
            )
        if unknown := sorted(term.needs - NEEDS):
            cure = suggest(unknown[0], NEEDS)
            raise ConfigError(f"objective.{name}", f"needs {unknown[0]!r}, which is unknown. {cure}")


def terms_have_samples(view: StageConfigView) -> None:
    """Require that a loss term which is only valid on texts generated by the student reads the stream `samples`.

    This stream (source of batches) has the generated texts.
    """
    for name, (term, *_) in view.components.terms.items():
        if "samples" in term.needs and term.stream != "samples":
            cure = f"Set objective.{name}.stream=samples, and step=on_policy(prompt=64)"
            problem = f"reads the stream {term.stream!r}, but is right only for texts that the student generated"
            raise ConfigError(f"objective.{name}", f"{problem}. {cure}.")


def terms_have_teachers(view: StageConfigView) -> None:
    """Require that the config has a teacher if a loss term compares the student with a teacher."""
    for name, (term, *_) in view.components.terms.items():
        if "teacher" in term.needs and not view.teacher_configs:
            cure = "Add teachers.NAME.model with a checkpoint, or with steps to train it here."
            raise ConfigError(f"objective.{name}", f"needs a teacher, and the config has none. {cure}")


def teachers_have_gradients(view: StageConfigView) -> None:
    """Require that teachers can compute the gradients that loss terms match: in the input or the hidden states.

    A teacher with cached outputs, for example, cannot compute gradients.
    """
    for name, (term, *_) in view.components.terms.items():
        gradients = sorted(term.needs & GRADIENTS)
        for teacher in view.teacher_configs.values():
            if gradients and (lack := teacher.lacks("gradients")):
                option, reason = lack
                cure = f"Remove {teacher.path}.{option}"
                raise ConfigError(f"objective.{name}", f"needs {gradients[0]}, and {reason}. {cure}.")


def sampled_caches_suit_their_terms(view: StageConfigView) -> None:
    """Require that loss terms stay unbiased if a cache holds classes drawn from the teacher's distribution, not logits.

    The gradient of a term is unbiased if the term is linear in the teacher's probabilities, uses the temperature at
    which the classes were sampled, and reads the outputs of one teacher (`fusion="single()"`).
    """
    for teacher in view.teacher_configs.values():
        if not teacher.cache:
            continue
        encoding = parse_encoding(teacher.cache, f"{teacher.path}.cache")
        for name, (term, *_) in view.components.terms.items():
            if not encoding.draws or "teacher" not in term.needs:
                continue
            path, temperature = f"objective.{name}", term.temperature
            if not term.linear or parse(view.config.fusion, "fusion").name != "single":
                cure = f"Set {path}.term='kd(...)' and fusion='single()', or cache outputs(...) of {teacher.path}"
                raise ConfigError(path, f"is biased with a cache of draws. {cure}.")
            if not (isinstance(temperature, Schedule) and temperature.low == temperature.high == encoding.temperature):
                cure = f"Set its temperature, or that of {teacher.path}.cache, which is {encoding.temperature:g}"
                raise ConfigError(path, f"has another temperature than the cache of draws that it reads. {cure}.")
