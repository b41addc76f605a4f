"""Check that a student trained for 2 bits keeps its weights in a GGUF file of 2 bits, and that llama.cpp runs it."""

import gguf
import jax
import numpy as np
import pytest

from jaxdistill.compress.aware import aware
from jaxdistill.core import registry
from jaxdistill.core.types import Variables
from jaxdistill.export import hugging_face
from jaxdistill.export.formats.gguf import write_file
from jaxdistill.export.network import Definition, network_of
from jaxdistill.export.output_difference import token_difference
from jaxdistill.export.runtimes import llamacpp
from jaxdistill.models.hub.gguf import Gguf
from jaxdistill.models.pretrained import architecture_of_spec

SPEC = "decoder(vocabulary=64, width=256, depth=1, heads=4, kv_heads=2, head_size=64, ffn=256)"
IDS = np.random.default_rng(0).integers(1, 64, (2, 16)).astype(np.int32)
FIELDS = {"input_ids": ((16,), "int32"), "mask": ((16,), "float32")}


@pytest.fixture(scope="module")
def networks():
    """Return a decoder with random weights, and one whose weights are -1, 0 or 1 times a scale."""
    model, form = registry.models.build(SPEC, ""), architecture_of_spec(SPEC)
    batch = {"input_ids": IDS, "mask": np.ones((2, 16), np.float32)}
    quantizer = aware(weights=2, inputs=0)
    wrapped = Variables(*jax.jit(quantizer.wrap(model, 1).init)(jax.random.key(0), batch))
    whole = Variables(*jax.jit(model.init)(jax.random.key(0), batch))
    ternary, _ = quantizer.finish(model, wrapped, batch)
    definition = Definition(form.family, form.arguments)
    return {
        name: network_of(model, values, FIELDS)._replace(definition=definition)
        for name, values in {"floats": whole, "ternary": ternary}.items()
    }


def test_three_values_survive_and_floats_do_not(networks, tmp_path):
    far = {}
    for name, subject in networks.items():
        notes = write_file(subject, tmp_path / "model.gguf", "TQ2_0")
        assert len(notes) == 1  # it says that the model has no tokenizer
        read, worst = Gguf(tmp_path / "model.gguf"), 0.0
        for array, x in hugging_face.weights("decoder", subject.definition.arguments, subject.variables).items():
            if x.ndim > 1:
                worst = max(worst, np.abs(read.read(array, ()) - x).max() / np.abs(x).max())
        far[name] = worst
    assert far["ternary"] < 2**-11 < 0.3 < far["floats"]  # a scale is kept in float16
    tensors = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert tensors["blk.0.ffn_up.weight"] == tensors["token_embd.weight"] == "TQ2_0"


def test_llama_cpp_runs_it(networks, tmp_path):
    pytest.importorskip("xllamacpp")
    divergence = {}
    for name, subject in networks.items():
        write_file(subject, tmp_path / f"{name}.gguf", "TQ2_0")
        run = llamacpp.open_file(tmp_path / f"{name}.gguf", 1)
        found = np.concatenate([run({"input_ids": IDS[row : row + 1]}) for row in range(2)])
        expected = np.asarray(jax.jit(subject.function)({"input_ids": IDS}))
        divergence[name] = token_difference(found.reshape(-1, 64), expected.reshape(-1, 64), None).divergence
    assert divergence["ternary"] < 1e-3 < 0.1 < divergence["floats"]


def test_a_matrix_of_other_widths_is_named_with_the_size_of_its_blocks(tmp_path):
    spec = SPEC.replace("ffn=256", "ffn=32")
    model, form = registry.models.build(spec, ""), architecture_of_spec(spec)
    batch = {"input_ids": IDS, "mask": np.ones((2, 16), np.float32)}
    values = Variables(*jax.jit(model.init)(jax.random.key(0), batch))
    subject = network_of(model, values, FIELDS)._replace(definition=Definition(form.family, form.arguments))
    *_, note = write_file(subject, tmp_path / "model.gguf", "TQ2_0")
    assert (
        note == "The rows of 1 matrices are no multiple of 256, so F16 holds them: model.layers.0.mlp.down_proj.weight."
    )
