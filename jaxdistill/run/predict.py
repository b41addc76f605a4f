"""Open a trained model of a run for use: `jaxdistill.load(RUN)`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError, suggest
from jaxdistill.core.notes import note
from jaxdistill.evaluation.report.table import FLOATS
from jaxdistill.run.config_files import load_config
from jaxdistill.run.hub_folders import HUB
from jaxdistill.run.result_file import are_one_run

CONFIGS = (".py", ".json")


def load(run: str | Path, model: str = "student", trust_source: bool = False) -> Any:
    """Load a trained model of a run as a predictor, with the preprocessing and the class names of its training.

        predictor = jaxdistill.load("runs/mine")
        predictor.predict(["a text", "another"]).labels

    Args:
        run: folder of a run, or the folder of one of its models, such as `runs/mine/student/hub`.
        model: "student", "control", or "teachers/NAME" for a teacher that the run trained.
        trust_source: whether to execute the Python file stored with the run, which registers parts of the model.

    Returns:
        A `Predictor` (`jaxdistill/export/predictor.py`).

    Raises:
        ConfigError: there is no such model, or it has parts that only the run's Python file registers.
        DamageError: a file of the model has changed since it was written, or the folder holds a model of another run.
    """
    folder = Path(run).expanduser()
    if Path(str(run).partition(":")[0]).suffix in CONFIGS:  # what `load` did in earlier versions
        note("jaxdistill.load(FILE) is load_config(FILE) now; load(RUN) opens a trained model")
        return load_config(str(run), trust_source)
    from jaxdistill.export.predictor import Predictor  # imports JAX; the mistakes above are told at once

    place = find_model_folder(folder, model)
    if trust_source:
        load_config(str(_run_of(place) / "config.json"), trust_source=True)
    predictor, row = Predictor(place), {"floats": FLOATS}.get(model, model.replace("teachers/", "teacher "))
    cure = "Delete that folder, and repeat the command of the run, which writes it again"
    if place != folder and predictor.about.stage not in ("", row):
        raise DamageError(f"{place} holds the model {predictor.about.stage!r}, not {row!r}. {cure}.")
    if place != folder and not are_one_run(predictor.about.run, _name_of(folder)):
        raise DamageError(f"{place} holds a model of another run. {cure}.")
    return predictor


def find_model_folder(folder: Path, model: str) -> Path:
    """Return the folder that holds the files of a trained model.

    Args:
        folder: folder of a run, or the folder of one model.
        model: "student", "control" or "teachers/NAME", for the folder of a run. For the folder of one model, it must be
            "student", the default.

    Raises:
        ConfigError: the folder holds no such model, or `model` is given for the folder of one model.
    """
    for place in (folder, folder / HUB):
        if (place / "jaxdistill.json").is_file():
            if model != "student":
                cure = "Leave --model out, or give the folder of the run"
                raise ConfigError("model", f"{str(folder)!r} is the folder of one model. {cure}.")
            return place
    patterns = [f"{'*/' * depth}{HUB}/jaxdistill.json" for depth in (1, 2, 3)]  # and no deeper: it may be a whole disk
    files = (file for pattern in patterns for file in folder.glob(pattern))
    places = {str(file.parents[1].relative_to(folder)): file.parent for file in files}
    if not places:
        state = "does not exist" if not folder.exists() else "holds no trained model"
        raise ConfigError("RUN", f"{str(folder)!r} {state}. Give the folder of a run, as in --workdir.")
    if model not in places:
        raise ConfigError("model", f"there is no {model!r} in {str(folder)!r}. {suggest(model, places)}")
    return places[model]


def _run_of(place: Path) -> Path:
    """Return the folder of the run that a model belongs to.

    Raises:
        ConfigError: no folder above has a config.json.
    """
    for folder in place.absolute().parents:
        if (folder / "config.json").is_file():
            return folder
    raise ConfigError("trust_source", f"no folder above {str(place)!r} has the config.json of a run.")


def _name_of(folder: Path) -> str:
    """Return the random name of a run from its config.json, or '' if the name or the file is missing."""
    try:
        return seal.read(folder / "config.json", {"config": dict}).get("run") or ""
    except FileNotFoundError:
        return ""


def results(folder: Path, option: str = "RUN") -> Mapping[str, Any]:
    """Return the content of the results.json of a run.

    Args:
        folder: folder of the run.
        option: argument of the command line that names the folder, for error messages.

    Raises:
        ConfigError: the folder holds no finished run.
        DamageError: the file is damaged.
    """
    try:
        content = seal.read(folder / "results.json", {"rows": list[dict], "config": dict})
        if not are_one_run(content.get("run"), _name_of(folder)):
            raise DamageError(f"{folder / 'results.json'} is of another run than config.json")
        return content
    except DamageError as error:
        raise DamageError(f"{error}. Restore it, or delete it: the command of the run writes it again.") from None
    except FileNotFoundError:
        raise ConfigError(option, f"{str(folder)!r} holds no finished run (results.json is missing).") from None
    except NotADirectoryError:
        raise ConfigError(option, f"{str(folder)!r} is a file. Give the folder of a run, as in --workdir.") from None
