"""Tests of GGUF files: our reader reads back the weights, and llama.cpp gives the outputs of the published code."""

import gguf
import jax
import numpy as np
import parity
import pytest

from jaxdistill.core import registry
from jaxdistill.core.types import Variables
from jaxdistill.export import hugging_face
from jaxdistill.export.formats.gguf import refuse, write_file
from jaxdistill.export.network import Definition, network_of
from jaxdistill.export.runtimes import llamacpp
from jaxdistill.models.hub.family import families
from jaxdistill.models.hub.gguf import Gguf
from jaxdistill.models.pretrained import architecture_of_spec

REFERENCES = ("llama_tied", "llama_untied", "qwen2", "qwen3")  # qwen3: heads wider than the model
KINDS = ("F32", "F16", "Q8_0", "Q4_0")
NO_TOKENS = "The model has no tokenizer: give llama.cpp token ids."


def network(name, folder):
    """Return the network of a reference checkpoint, and the reference."""
    ref = parity.reference(name)
    family, arguments, model, variables = parity.ours(parity.write_folder(folder / name, ref), ref.batch)
    fields = {field: (x.shape[1:], str(x.dtype)) for field, x in ref.batch.items()}
    return network_of(model, variables, fields)._replace(definition=Definition(family, arguments)), ref


def rounded(x, kind):
    encoding = gguf.GGMLQuantizationType[kind]
    return gguf.dequantize(gguf.quantize(x, encoding), encoding)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_file_is_read_back_with_the_weights_that_its_kind_keeps(name, kind, tmp_path):
    subject, _ = network(name, tmp_path)
    notes = write_file(subject, tmp_path / "model.gguf", kind)
    source, definition = Gguf(tmp_path / "model.gguf"), subject.definition
    assert families["decoder"].arguments(source.config) == definition.arguments
    weights = hugging_face.weights("decoder", definition.arguments, subject.variables)
    assert source.arrays.keys() == weights.keys()  # a tied head has no array beside the embedding table
    assert ("lm_head.weight" in weights) == (not definition.arguments["tied"])
    for array, x in weights.items():
        kept = "F32" if x.ndim == 1 else "F16" if kind.startswith("Q") and x.shape[1] % 32 else kind
        np.testing.assert_array_equal(source.read(array, ()), rounded(x, kept), array)
    names = ", ".join(f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1))
    short = (f"The rows of 2 matrices are no multiple of 32, so F16 holds them: {names}.",)
    assert notes == (NO_TOKENS, *(short if kind.startswith("Q") else ()))


def test_a_file_is_a_checkpoint(tmp_path):
    subject, ref = network("llama_tied", tmp_path)
    write_file(subject, tmp_path / "model.gguf", "F32")
    model = registry.models.build(f"pretrained('{tmp_path / 'model.gguf'}', attentions=True)", "")
    shapes = Variables(*jax.eval_shape(model.init, parity.KEY, ref.batch))
    parity.check_outputs(ref, parity.run(model, model.load(shapes).read(), ref.batch))


@pytest.mark.parametrize("name", ["llama_tied", "qwen2"])
def test_the_rows_of_queries_are_those_that_llama_cpp_rotates(name, tmp_path):
    """Check that query rows are interleaved for a Llama, where llama.cpp rotates neighbours, and kept for a Qwen2."""
    subject, _ = network(name, tmp_path)
    write_file(subject, tmp_path / "model.gguf", "F32")
    x = hugging_face.weights("decoder", subject.definition.arguments, subject.variables)[
        "model.layers.0.self_attn.q_proj.weight"
    ]
    stored = next(t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors if t.name == "blk.0.attn_q.weight").data
    order = [0, 4, 1, 5, 2, 6, 3, 7] if name == "llama_tied" else range(8)
    np.testing.assert_array_equal(stored[:8], x[list(order)])
    np.testing.assert_array_equal(stored[8:16], x[[8 + n for n in order]])


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("bert", {}, "llama.cpp runs decoders of the architectures llama, qwen2, qwen3, and this is a bert. Use onnx"),
        ("", {}, "and this is another model. Use onnx or stablehlo."),
        ("decoder", {"rope_scaling": (8.0, 1.0, 4.0, 64)}, "scaled rotary positions (rope_scaling) are not written"),
        ("decoder", {"qkv_bias": True, "head_size": 16}, "heads * head_size = width. Use onnx or stablehlo."),
        ("decoder", {"qkv_bias": True}, ""),
        ("decoder", {"head_size": 16}, ""),
    ],
)
def test_what_llama_cpp_has_not_is_refused(family, changes, said):
    plain = {"heads": 4, "head_size": 8, "width": 32, "qkv_bias": False, "qk_norm": False, "rope_scaling": None}
    found = refuse(Definition(family, {**plain, **changes}) if family else None)
    assert said in found and bool(said) == bool(found)


# In llama.cpp


@pytest.fixture
def opened():
    """Return a function that opens a file in llama.cpp; skip the test where llama.cpp is not installed."""
    pytest.importorskip("xllamacpp")
    return lambda file: llamacpp.open_file(file, 1)


def log_probabilities(logits):
    return np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float32)))


@pytest.mark.parametrize("name", REFERENCES)
def test_llama_cpp_computes_what_the_published_code_did(name, tmp_path, opened):
    subject, ref = network(name, tmp_path)
    rows = {field: np.asarray(x) for field, x in ref.batch.items() if field in subject.inputs}
    real = rows.get("attention_mask", np.ones(rows["input_ids"].shape)) > 0
    expected, scale = log_probabilities(ref.said["logits"][real]), np.abs(ref.said["logits"]).max()
    far = {}
    for kind in KINDS:
        write_file(subject, tmp_path / f"{kind}.gguf", kind)
        found = opened(tmp_path / f"{kind}.gguf")(rows)
        assert found.shape == ref.said["logits"].shape and found.dtype == np.float32 and not found[~real].any()
        far[kind] = np.abs(log_probabilities(found[real]) - expected).max() / scale
    assert far["F32"] < 1e-5 < far["F16"] < 0.01 < far["Q8_0"] < 0.2 and far["Q8_0"] < far["Q4_0"]


def test_documents_of_a_row_do_not_see_each_other_and_long_ones_take_several_batches(tmp_path, opened, monkeypatch):
    spec = "decoder(vocabulary=32, width=32, depth=1, heads=2, kv_heads=1, head_size=16, ffn=32, positions=700)"
    model, length = registry.models.build(spec, ""), 600
    fields = {"input_ids": ((length,), "int32"), "segment_ids": ((length,), "int32"), "mask": ((length,), "float32")}
    shapes = {field: jax.ShapeDtypeStruct((1, *shape), dtype) for field, (shape, dtype) in fields.items()}
    draw = np.random.default_rng(0)
    params = jax.eval_shape(model.init, parity.KEY, shapes)[0]
    variables = Variables({n: draw.normal(0.2, 0.3, x.shape).astype(np.float32) for n, x in params.items()}, {})
    form = architecture_of_spec(spec)
    subject = network_of(model, variables, fields)._replace(definition=Definition(form.family, form.arguments))
    write_file(subject, tmp_path / "model.gguf", "F32")
    segments = np.repeat([1, 2, 0], [520, 70, 10])[None].astype(np.int32)
    rows = {"input_ids": draw.integers(0, 32, (1, length)).astype(np.int32), "segment_ids": segments}
    expected = log_probabilities(jax.jit(subject.function)(rows))[segments > 0]
    found = opened(tmp_path / "model.gguf")(rows)
    np.testing.assert_allclose(log_probabilities(found)[segments > 0], expected, atol=1e-3)
    one = opened(tmp_path / "model.gguf")({**rows, "segment_ids": np.ones_like(segments)})
    assert np.abs(log_probabilities(one)[0, 520:590] - expected[520:]).max() > 0.1  # a row of one document differs


def test_a_file_that_llama_cpp_cannot_read_is_told_in_its_words(tmp_path, opened):
    subject, _ = network("llama_tied", tmp_path)
    write_file(subject, tmp_path / "model.gguf", "F32")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:-5000])
    with pytest.raises(RuntimeError, match=r"llama\.cpp cannot read the file: .*tensor"):
        opened(tmp_path / "cut.gguf")


@pytest.mark.parametrize("place", [0, 13, 26])
def test_parameters_that_have_moved_are_not_changed_by_guess(place, opened):
    default = llamacpp.load_library().llama_context_default_params()
    numbers = np.frombuffer(llamacpp.context_parameters(default, 300), np.int32)
    assert [*numbers[:3]] == [512, 256, 256]
    other = np.frombuffer(default, np.int32).copy()
    other[place] = 7
    with pytest.raises(RuntimeError, match=r"pip install 'jaxdistill\[gguf\]'"):
        llamacpp.context_parameters(llamacpp.Block.from_buffer_copy(other.tobytes()), 300)
