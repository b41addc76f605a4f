"""Check that no flipped bit, at any place in any file that a run left, changes a result unnoticed."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs
from own_runs import QUIET, unlabelled

import jaxdistill
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, DamageError, WeightsError
from jaxdistill.core.types import Variables
from jaxdistill.models.pretrained import architecture_of_spec
from jaxdistill.run.config_files import load_config

WORDS = ("--config.steps=20", "--config.teachers.big.steps=20", "--config.control=False")


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with runs.compilation_cache(tmp_path_factory.getbasetemp() / "programs"):
        yield


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """Return a folder with the run of a teacher, the cache of its outputs, and a run that trains from this cache."""
    home = tmp_path_factory.mktemp("left")
    assert runs.run(home / "taught", *WORDS) == 0
    assert command("cache", home) == 0
    assert command("train", home) == 0
    return home


@pytest.fixture(scope="module")
def whole(left, tmp_path_factory):
    return Path(shutil.copytree(left, tmp_path_factory.mktemp("whole") / "left"))


def command(name: str, home: Path) -> int:
    from jaxdistill import main

    cached = f"--config.teachers.big.cache=outputs(folder='{home}/cache')"
    words = [*WORDS, f"--config.teachers.big.checkpoint={home}/taught/teachers/big", cached, "--config.data.augment=()"]
    workdir = ["--workdir", str(home / "run")] if name == "train" else []
    return main.run([name, "--config", str(runs.TINY), *words, *workdir])


def results(home: Path) -> dict[str, Any]:
    rows = [runs.without_latency(row) for row in runs.results(home / "run")["rows"]]
    # Orbax reads these arrays without our checksums. The optimiser's state is left out: a finished run does not read
    # it, and a run that goes on checks it.
    saved = runs.saved(home / "run" / "student", without="opt_state/")
    return {"rows": rows} | {name: x.tobytes() for name, x in saved.items()}


def files(home: Path) -> list[Path]:
    """Return every file that a run reads again; files that it only writes (logs, pages) are left out.

    The order is the same in every run, although some files of a checkpoint have random names.
    """
    only_written = (".html", ".jsonl", ".svg", ".png")
    every = (f for f in home.rglob("*") if f.is_file() and f.stat().st_size and f.name != "lock")
    read = [f for f in every if f.suffix not in only_written and "events.out" not in f.name]
    place = lambda f: (f.parent, f.name if f.parent.name != "d" else "", f.stat().st_size, f.read_bytes())
    return [f.relative_to(home) for f in sorted(read, key=place)]


def flipped_is_harmless(home: Path, whole: Path, file: Path, draw: np.random.Generator) -> str:
    """Flip a bit, run the same commands again, and check that they refuse or give the same; return "refused" or "same".

    Args:
        home: folder of the runs, which is restored at the end.
        whole: a copy of this folder.
        file: the file in which a bit flips, relative to `home`.
        draw: random generator that chooses the bit.
    """
    wanted = results(whole)
    runs.flip(home / file, int(draw.integers((home / file).stat().st_size)), 1 << int(draw.integers(8)))
    try:
        codes = [command("cache", home)] if file.parts[0] == "cache" and draw.random() < 0.5 else []
        shutil.rmtree(home / "run" / "student" / "hub", ignore_errors=True)
        codes.append(command("train", home))
        assert set(codes) <= {0, 2, 4}, codes
        if codes[-1] == 0:
            assert results(home) == wanted, f"a flip in {file} has changed the result"
        return "refused" if codes[-1] else "same"
    finally:
        shutil.rmtree(home)
        shutil.copytree(whole, home)


@pytest.mark.slow
def test_a_flip_in_each_kind_of_file(left, whole, capsys):
    draw, kinds = np.random.default_rng(0), {}
    for file in files(left):  # one file of each kind
        kinds.setdefault((file.parts[0], file.suffix, file.parent.name if not file.suffix else ""), file)
    assert len(kinds) >= 12
    said = [flipped_is_harmless(left, whole, file, draw) for file in kinds.values()]
    assert said.count("same") > len(said) / 2  # most files can be made again, or exist twice


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_thirty_flips_anywhere(seed, left, whole, capsys):
    draw = np.random.default_rng(seed)
    every = files(left)
    for _ in range(30):
        flipped_is_harmless(left, whole, every[int(draw.integers(len(every)))], draw)


@pytest.mark.slow
def test_flips_in_a_record_never_load_as_another_config(left, tmp_path):
    """Check that a flipped bit in config.json is refused or changes nothing that is loaded."""
    draw, whole = np.random.default_rng(1), (left / "taught" / "config.json").read_bytes()
    config = load_config(str(left / "taught" / "config.json"), trust_source=True)
    shutil.copytree(left / "taught", tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    for _ in range(300):
        file.write_bytes(whole)
        runs.flip(file, int(draw.integers(len(whole))), 1 << int(draw.integers(8)))
        try:
            assert load_config(str(file)) == config
        except (ConfigError, DamageError):
            continue


def as_checkpoint(folder: Path) -> list[np.ndarray]:
    """Return the arrays and the architecture of a model that starts from the checkpoint in a folder."""
    spec = f"pretrained({str(folder)!r}, classes=0)"
    model = registry.models.build(spec, "student.model")
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"input_ids": np.zeros((1, 4), np.int32)})
    architecture = np.frombuffer(repr(architecture_of_spec(spec)).encode(), np.uint8)
    return [*jax.tree.leaves(model.load(Variables(*shapes)).read()), architecture]


@pytest.mark.parametrize("how", ["flipped", "removed"])
def test_no_file_of_a_model_folder_changes_an_embedding_in_silence(how, home, trained, tmp_path):
    """Check both ways of reading the folder: as the model of its run, and as the checkpoint of another model."""
    model = f"pretrained({str(trained('bert') / 'teachers' / 'big' / 'hub')!r}, classes=0)"
    config = unlabelled(home, model, teachers={"big": {"model": model}}, objective={"logit_mse": {}}, steps=1)
    jaxdistill.distill(config, tmp_path / "run", QUIET)
    hub, draw = tmp_path / "run" / "student" / "hub", np.random.default_rng(0)
    read = lambda: [jaxdistill.load(tmp_path / "run").predict(["a b c", "d"]).embeddings, *as_checkpoint(hub)]
    wanted, silent = read(), []
    names = [str(file.relative_to(hub)) for file in sorted(hub.rglob("*")) if file.is_file()]
    assert {"config.json", "model.safetensors", "seal.json", "tokenizer.json", "1_Pooling/config.json"} <= {*names}
    for name in names:
        whole = (hub / name).read_bytes()
        for _ in range(6 if how == "flipped" else 1):
            if how == "flipped":
                runs.flip(hub / name, int(draw.integers(len(whole))), 1 << int(draw.integers(8)))
            else:
                (hub / name).unlink()
            with contextlib.suppress(ConfigError, DamageError, WeightsError):
                found = read()
                if len(found) != len(wanted) or not all(map(np.array_equal, found, wanted)):
                    silent.append(name)
            (hub / name).write_bytes(whole)
    assert not silent
