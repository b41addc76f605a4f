"""Decoders: what transformers says, scanned or not, packed or not, and nothing seen before its time."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from examples import assert_close, quick_jit
from golden.weights import tokens

from jaxdistill import registry
from jaxdistill.hub.family import families
from jaxdistill.hub.weights import dump
from jaxdistill.models.combinators import in_dtype
from jaxdistill.types import Factored

KEY = jax.random.key(0)
NAMES = ("llama_tied", "llama_untied", "llama_scaled", "qwen2", "qwen3")
TINY = "decoder(vocabulary=64, width=32, depth=2, heads=4, kv_heads=2, head_size=8, ffn=48"
FAMILY = families["decoder"]


@pytest.fixture(params=NAMES)
def ref(request):
    return parity.reference(request.param)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_outputs_and_gradients_are_those_of_transformers(ref, layers, tmp_path):
    folder = parity.write_folder(tmp_path, ref)
    options = {"layers": layers, "attentions": "attention/0" in ref.said}
    _, _, model, variables = parity.ours(folder, ref.batch, **options)
    out = parity.run(model, variables, ref.batch)
    parity.check_outputs(ref, out)
    assert len(out.attentions) == 2 * options["attentions"]
    parity.check_gradients(ref, folder, layers=layers)


def built(options: str = "", batch=None):
    model = registry.models.build(f"{TINY}{options})", "model")
    return model, quick_jit(model.init)(KEY, batch or {"input_ids": tokens(2, 6, 64)})


def logits(model, values, batch):
    return jax.jit(lambda values, batch: model.apply(*values, batch, train=False, key=KEY)[0].dense().logits)(
        values, batch
    )
