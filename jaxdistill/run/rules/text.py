"""Rules about the spec strings of a stage, before any data are looked at."""

from jaxdistill.core import checkpoint, registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.schedules import Horizon, Schedule
from jaxdistill.models.build import build_model
from jaxdistill.models.derivatives import NEEDED
from jaxdistill.run.parts import step_spec, timed
from jaxdistill.run.views import StageText
from jaxdistill.teachers.cache import KEY as CACHE
from jaxdistill.teachers.cache import keep_of
from jaxdistill.teachers.load import no_checkpoint
from jaxdistill.teachers.teacher import checkpoint_of


def objective_has_terms(text: StageText) -> None:
    """The objective has a term."""
    if not text.named.terms:
        raise ConfigError("objective", f"no terms. Name at least one; losses: {', '.join(registry.losses)}.")


def rate_is_not_negative(text: StageText) -> None:
    """The learning rate is never negative."""
    low = text.named.rate.low
    if low < 0:
        raise ConfigError("rate", f"{text.config.rate!r} reaches {low:g}; a learning rate is 0 or more.")


def step_is_known(text: StageText) -> None:
    """The step has the arguments that the config names."""
    nothing = {"student": None, "teachers": (), "objective": None, "optimizer": None}  # bound, and not called
    horizon = Horizon(text.config.steps, text.config.steps)
    registry.steps.bind(step_spec(text.config, nothing), "step", timed(horizon))


def models_are_known(text: StageText) -> None:
    """Student and teachers are models, and options of teachers have the arguments that the config names."""
    build_model(text.config.student.model, "student.model", text.config.dtype)
    for entry in text.entries.values():
        entry.check()


def teachers_can_be_trained_here(text: StageText) -> None:
    """A teacher that a stage of this run trains has no option against it."""
    for entry in text.entries.values():
        if entry.trained_here and (lack := entry.lacks("training")):
            option, why = lack
            cure = f"Leave it out, or train the teacher in a run of its own, and name that run: {entry.path}.checkpoint"
            raise ConfigError(f"{entry.path}.{option}", f"it is trained here, and {why}. {cure}.")


def checkpoints_exist(text: StageText) -> None:
    """The checkpoint of every live teacher is there."""
    for entry in text.entries.values():
        if entry.checkpoint and not entry.options.get(CACHE):
            try:
                checkpoint.choose_step(*checkpoint_of(entry.checkpoint))
            except checkpoint.CheckpointError as error:
                raise no_checkpoint(entry.path, entry.checkpoint, error) from None


def terms_have_teachers(text: StageText) -> None:
    """A term that compares with a teacher has one."""
    for name, (term, _) in text.named.terms.items():
        if "teacher" in term.needs and not text.entries:
            cure = "Add teachers.NAME.model with a checkpoint, or with steps to train it here."
            raise ConfigError(f"objective.{name}", f"needs a teacher, and the config has none. {cure}")


def teachers_have_gradients(text: StageText) -> None:
    """A term that compares gradients has teachers that return them."""
    for name, (term, _) in text.named.terms.items():
        gradients = sorted(term.needs & NEEDED)
        for entry in text.entries.values():
            if gradients and (lack := entry.lacks("gradients")):
                option, why = lack
                cure = f"Remove {entry.path}.{option}"
                raise ConfigError(f"objective.{name}", f"needs {gradients[0]}, and {why}. {cure}.")


def draws_are_read_in_expectation(text: StageText) -> None:
    """Draws are a teacher's distribution in expectation: of a term that is linear in it, at their temperature."""
    caches = {name: entry for name, entry in text.entries.items() if entry.options.get(CACHE)}
    for teacher, entry in caches.items():
        keep = keep_of(entry.options[CACHE], f"{entry.path}.{CACHE}")
        for name, (term, _) in text.named.terms.items():
            if not keep.draws or "teacher" not in term.needs:
                continue
            path, at = f"objective.{name}", term.temperature
            if not term.linear or registry.parse(text.config.fusion, "fusion").name != "single":
                cure = f"Set {path}.term='kd(...)' and fusion='single()', or keep teachers.{teacher} by outputs"
                raise ConfigError(path, f"of a teacher's draws this term has another expectation. {cure}.")
            if not (isinstance(at, Schedule) and at.low == at.high == keep.temperature):
                cure = f"Set its temperature, or that of teachers.{teacher}.cache, which is {keep.temperature:g}"
                raise ConfigError(path, f"reads classes that were drawn at another temperature. {cure}.")
