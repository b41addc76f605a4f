"""Tests of the memory check: a run that cannot fit into memory is refused before anything is allocated."""

import jax
import jax.numpy as jnp
import pytest
import runs

from jaxdistill.core import memory
from jaxdistill.core.errors import ConfigError
from jaxdistill.run.rules import stage


def test_the_host_has_memory_and_says_how_much():
    assert 2**26 < memory.host_memory() < 2**60
    assert len(jax.devices()) * memory.device_memory(jax.devices()) == pytest.approx(memory.host_memory(), rel=0.5)


def test_what_a_container_uses_is_not_free(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "Path", lambda *parts: tmp_path.joinpath(*(part.lstrip("/") for part in parts)))
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in (("memory.max", 2**30), ("memory.current", 2**29), ("memory.stat", f"inactive_file {2**20}")):
        (group / name).write_text(f"{text}\n")
    assert memory.host_memory() == 2**30 - 2**29 + 2**20
    (group / "memory.max").write_text("max\n")
    assert memory.host_memory() > 2**30


def test_memory_is_asked_for_parameters_moments_and_two_copies_of_a_batch(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(stage, "require", lambda parts, *_: asked.append(parts))
    words = "--config.student.model=mlp(widths=(7,), classes=4)", "--config.control=False", "--check"
    with runs.registries_as_found():
        assert runs.run(tmp_path / "run", *words) == 0
    parameters = 64 * 7 + 7 + 7 * 4 + 4
    (parts,) = [each for each in asked if each["the parameters of the model"][1] == 4 * parameters]
    assert parts["the state of the optimiser"][1] == pytest.approx(8 * parameters, abs=16)  # Adam's two moments
    rows = 64 + 4 + 4 + 4  # bytes of an image of 8 x 8, a label, a mask and a record number
    assert parts["a batch of 32 rows"][1] == 2 * 32 * rows


def test_the_size_of_shapes_is_that_of_arrays():
    tree = {"a": jax.ShapeDtypeStruct((10, 3), jnp.bfloat16), "b": [jnp.zeros(7), jnp.zeros((), jnp.int8)]}
    assert memory.size_of(tree) == 60 + 28 + 1


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (1000, "1e+03 bytes"), (1024, "1 KiB"), (3 * 2**40, "3 TiB"), (2**80, "1.05e+06 EiB")],
)
def test_bytes_are_read_by_people(count, said):
    assert memory.format_bytes(count) == said


def test_what_needs_most_is_named_with_its_key():
    parts = {"the model": ("student.model", 3 * 2**30), "a batch": ("batch_size", 5 * 2**30)}
    memory.require(parts, 8 * 2**30, "Buy more")
    with pytest.raises(ConfigError, match=r"^batch_size: needs at least 8 GiB of memory, 5 GiB of it for a batch"):
        memory.require(parts, 8 * 2**30 - 1, "Buy more")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("student.model=mlp(widths=(9999999999,), classes=4)", "student.model: mlp: widths=(9999999999,) is too large"),
        ("student.model=mlp(widths=(2000000000,), classes=4)", "student.model: needs at least"),
        ("batch_size=2147483640", "batch_size: a batch of 2147483640 rows would hold each of the 250 records"),
        ("evaluate.batch_size=2147483640", "evaluate.batch_size: a batch of 2147483640 rows would hold"),
        ("teachers.big.model=mlp(widths=(2000000000,), classes=4)", "teachers.big.model: needs at least"),
        ("student.model=vit(patch=4, width=8, depth=100000, heads=2, classes=4)", "depth asks for 100000 layers"),
        ("student.model=resnet(widths=(4,), blocks=3000, classes=4)", "blocks asks for 3000 layers"),
        ("data.augment=('resize(size=100000)',)", "data.augment: resize: size 100000; give 1 to 16384"),
        ("data.augment=('shift(pixels=40)',)", "data.augment: shift by 40 pixels leaves nothing of images of 8 x 8"),
    ],
)
def test_what_cannot_fit_is_refused(change, said, tmp_path, capsys):
    assert runs.run(tmp_path / "run", f"--config.{change}") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
