"""Fuzz tests of the bytes of every file kind: no traceback, no unnoticed change if sealed, little memory and time."""

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import corpora
import hypothesis
import numpy as np
import own_files
import parity
import pytest
import runs
import torch_files
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError
from jaxdistill.data import store
from jaxdistill.data.image.processors import read_recipe
from jaxdistill.data.text import tokenizer
from jaxdistill.losses.relations.edges import Graph, read_graph, write_graph
from jaxdistill.models.hub.gguf import Gguf
from jaxdistill.models.hub.kept_tokens import read_kept_tokens
from jaxdistill.models.hub.source import Safetensors
from jaxdistill.models.hub.torch_legacy import LegacyTorch
from jaxdistill.models.pretrained import architecture_of
from jaxdistill.run import failures
from jaxdistill.run.config_files import load_config

SECONDS, MEMORY = 10, 2**30


class Kind(NamedTuple):
    """A kind of file: how to write it, how to read it, and whether a seal must reveal every change of its content."""

    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    sealed: bool = False


def write_safetensors(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(parity.reference("bert_classifier").config))
    save_file({"x": np.arange(12, dtype=np.float32).reshape(3, 4), "y": np.ones(5)}, folder / "model.safetensors")
    return folder / "model.safetensors"


def read_safetensors(file: Path) -> object:
    source = Safetensors(file.parent)
    return {name: source.read(name, ()).tobytes() for name in source.arrays}


def write_gguf(folder: Path) -> Path:
    from gguf import GGUFWriter

    file = folder / "tiny.gguf"
    writer = GGUFWriter(file, "llama")
    for key, value in {"block_count": 1, "embedding_length": 8, "feed_forward_length": 8, "context_length": 16}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_tensor("token_embd.weight", np.ones((3, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def read_gguf(file: Path) -> object:
    source = Gguf(file)
    return source.config, {name: source.read(name, ()).tobytes() for name in source.arrays}


def write_legacy(folder: Path) -> Path:
    return torch_files.write(
        folder / "weights.pth", torch_files.holding(x=torch_files.tensor(), y=torch_files.tensor())
    )


def read_legacy(file: Path) -> object:
    source = LegacyTorch(file, {"model_type": "x"})
    return {name: source.read(name, ()).tobytes() for name in source.arrays}


def write_store(folder: Path) -> Path:
    manifest = store.StoreManifest(5, 4, {"logits": ((3,), "float32")}, {"identity": {"a": 1}})
    store.write_manifest(folder, manifest)
    for number, rows in enumerate((4, 1)):
        store.write_shard(folder, manifest, number, {"logits": np.full((rows, 3), number, np.float32)})
    return folder / "00000.array_record"


def read_store(file: Path) -> object:
    return [row["logits"].tobytes() for row in store.Store(file.parent).__getitems__(range(5))]


def of_store(name: str) -> Kind:
    return Kind(lambda folder: write_store(folder).with_name(name), read_store, sealed=True)


def write_config(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(parity.reference("bert_classifier").config))
    return folder / "config.json"


def read_config(file: Path) -> object:
    from jaxdistill.models.hub.locate import open_config

    return architecture_of(open_config(str(file.parent)), (), (), "", {})


def write_record(folder: Path) -> Path:
    seal.write(folder / "config.json", {"config": runs.load().to_dict(), "source": "", "parts": {}})
    return folder / "config.json"


def write_kept(folder: Path) -> Path:
    seal.write_text(folder / "vocabulary.json", json.dumps({"ids": [0, 2, 3], "size": 5}))
    seal.seal_folder(folder)
    return folder / "vocabulary.json"


def write_preprocessor(folder: Path) -> Path:
    (folder / "preprocessor_config.json").write_text(
        json.dumps({
            "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 8, "width": 8},
            "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True, "resample": 2,
        })
    )  # fmt: skip
    return folder / "preprocessor_config.json"


def write_result(folder: Path) -> Path:
    seal.write(folder / "result.json", {"row": {"accuracy": 0.5}, "step": 3})
    return folder / "result.json"


def write_a_graph(folder: Path) -> Path:
    write_graph(folder / "graph.json", Graph(("a", "b", "c"), ((0, 1, 1.0), (1, 2, 0.5))))
    return folder / "graph.json"


KINDS = {
    "safetensors": Kind(write_safetensors, read_safetensors),
    "gguf": Kind(write_gguf, read_gguf),
    "legacy": Kind(write_legacy, read_legacy),
    "tokenizer": Kind(lambda folder: corpora.written(folder, corpora.WORDS) / "tokenizer.json", tokenizer.load),
    "array record": of_store("00000.array_record"),
    "seal of a shard": of_store("00000.json"),
    "manifest of a store": of_store("manifest.json"),
    "config.json of a checkpoint": Kind(write_config, read_config),
    "preprocessor_config.json": Kind(write_preprocessor, lambda file: read_recipe(file.parent)),
    "record of a run": Kind(write_record, lambda file: load_config(str(file)).to_dict(), sealed=True),
    "result.json": Kind(
        write_result, lambda file: seal.read(file, {"row": dict, "step": int}, required=True), sealed=True
    ),
    "vocabulary.json": Kind(write_kept, lambda file: read_kept_tokens(str(file.parent)), sealed=True),
    "graph": Kind(write_a_graph, read_graph),
    "own csv": Kind(own_files.write_csv, own_files.read_table),
    "own json lines": Kind(own_files.write_lines, own_files.read_table),
    "own parquet": Kind(own_files.write_parquet, own_files.read_table),
    "own npz": Kind(own_files.write_npz, lambda file: own_files.read_table(file, "features='x', label='y'")),
    "own image": Kind(own_files.write_image, lambda file: own_files.read_table(file.parents[1], "", file.parents[2])),
    "copy of an own file": Kind(own_files.write_store, own_files.read_store, sealed=True),
    "manifest of this copy": Kind(own_files.write_store_manifest, own_files.read_store, sealed=True),
    "weights of a model": Kind(own_files.write_model, own_files.read_model, sealed=True),
    "jaxdistill.json": Kind(
        lambda folder: own_files.write_model(folder).with_name("jaxdistill.json"), own_files.read_model, sealed=True
    ),
}


@st.composite
def damages(draw):
    """Draw a damage to the bytes of a file: a flipped bit, or bytes that are cut, doubled or replaced."""
    kind = draw(st.sampled_from(["flip", "flip", "cut", "double", "replace", "text", "zeros"]))
    return (
        kind,
        draw(st.floats(0, 1)),
        draw(st.floats(0, 1)),
        draw(st.binary(min_size=1, max_size=12)),
        draw(st.integers(0, 7)),
    )


WORDS = [
    b"9" * 40,
    b"-1",
    b"1e999",
    b"null",
    b"{}",
    b"[[[[",
    b"true",
    b'"\\ud800"',
    b"4294967295",
    b"18446744073709551615",
]


def damaged(content: bytes, damage) -> bytes:
    kind, at, size, other, bit = damage
    place = min(int(at * len(content)), len(content) - 1)
    end = place + 1 + int(size * size * (len(content) - place))
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]
    if kind == "text":
        return content[:place] + WORDS[bit % len(WORDS)] + content[end:]
    middle = {"cut": b"", "double": 2 * content[place:end], "replace": other, "zeros": bytes(end - place)}[kind]
    return content[:place] + middle + content[end:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a file of each kind, with its bytes and what is read from it."""

    class Made(dict):
        def __repr__(self) -> str:  # hypothesis prints it beside failed examples
            return "whole"

    made = Made()
    with runs.registries_as_found():
        for name, kind in KINDS.items():
            folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
            file = kind.write(folder)
            made[name] = (folder, file.relative_to(folder), file.read_bytes(), repr(kind.read(file)))
    return made


def noticed(name: str, whole, damage) -> None:
    kind, (folder, file, content, read) = KINDS[name], whole[name]
    changed = damaged(content, damage)
    place = folder.with_name(f"{folder.name}-damaged")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place)
    (place / file).write_bytes(changed)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        again = repr(kind.read(place / file)).replace(place.name, folder.name)
        assert not kind.sealed or again == read, "a change of the content was not noticed"
    except Exception as error:
        if isinstance(error, AssertionError):
            raise
        code, said = failures.explain(error)
        assert code in (2, 4) or isinstance(error, ValueError), f"{type(error).__name__}: {error}"
        assert "\n" not in said
    assert time.perf_counter() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


@pytest.fixture(scope="module", autouse=True)
def _no_code_of_the_users():
    with pytest.MonkeyPatch.context() as patch, runs.registries_as_found():
        patch.setattr(failures, "user_location", lambda error: "")
        patch.setattr(failures, "registered_by_others", list)
        yield


fuzz = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))


@pytest.mark.parametrize("name", KINDS)
@given(damage=damages())
@fuzz
def test_a_damaged_file_is_refused_in_one_line_or_reads_the_same(name, whole, damage):
    noticed(name, whole, damage)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@given(damage=damages())
@settings(fuzz, max_examples=400, derandomize=False)
def test_many_more_damages_are_refused(name, whole, damage):
    noticed(name, whole, damage)


def test_the_fuzz_would_see_a_traceback():
    with pytest.raises(AssertionError, match="KeyError"):
        try:
            raise KeyError("x")
        except KeyError as error:
            code, _ = failures.explain(error)
            assert code in (2, 4), f"{type(error).__name__}: {error}"
    assert failures.explain(ConfigError("a", "b"))[0] == 2
