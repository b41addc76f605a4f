"""Tests of `decoder`: parity with transformers, scanned layers, attention masks, packed documents, and tied heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from checks import assert_close, assert_same
from examples import slow
from golden.weights import tokens
from safetensors.numpy import save_file

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Variables
from jaxdistill.models.combinators import in_dtype
from jaxdistill.models.hub.family import families
from jaxdistill.models.hub.source import Safetensors
from jaxdistill.models.hub.weights import export_arrays, load, map_weights

KEY = jax.random.key(0)
NAMES = ("llama_tied", "llama_untied", "llama_scaled", "mistral", "qwen2", "qwen3")
TINY = "decoder(vocabulary=64, width=32, depth=2, heads=4, kv_heads=2, head_size=8, ffn=48, positions=32"
FAMILY = families["decoder"]


@functools.cache
def built(options: str = ""):
    """Build a tiny decoder and its initial variables."""
    model = registry.models.build(f"{TINY}{options})", "model")
    return model, Variables(*jax.jit(model.init)(KEY, {"input_ids": tokens(2, 6, 64)}))


def read(batch, options: str = "", values=None):
    """Return all outputs of a tiny decoder for a batch."""
    model, own = built(options)
    return jax.jit(lambda values: parity.run(model, values, batch))(values or own)


@pytest.mark.sampled("qwen3-True", "llama_scaled-False", "mistral-True")
@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_transformers(name, scan, tmp_path):
    ref = parity.reference(name)
    folder = parity.write_folder(tmp_path, ref)
    options = {"scan_layers": scan, "attentions": "attention/0" in ref.said}
    _, _, model, variables = parity.ours(folder, ref.batch, **options)
    out = jax.jit(lambda variables: parity.run(model, variables, ref.batch))(variables)
    parity.check_outputs(ref, out)
    assert len(parity.probabilities(out)) == 2 * options["attentions"]
    parity.check_gradients(ref, folder, scan_layers=scan)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", ["llama_tied", "qwen3"])
def test_what_is_written_is_read_again_to_the_bit(name, scan, tmp_path):
    ref = parity.reference(name)
    folder = parity.write_folder(tmp_path / "a", ref)
    _, arguments, _, variables = parity.ours(folder, ref.batch, scan_layers=scan)
    written = export_arrays(FAMILY, arguments, variables)
    assert {n: x.shape for n, x in written.items()} == ref.shapes
    save_file(written, folder / "model.safetensors")
    _, _, _, again = parity.ours(folder, ref.batch, scan_layers=scan)
    assert_same(again, variables)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_survives_the_way_through_our_arguments(name):
    config = parity.reference(name).config
    arguments = FAMILY.arguments(config)
    ours = FAMILY.config({**arguments, "remat": "dots"})
    assert FAMILY.arguments(ours) == arguments
    renamed = {"num_key_value_heads", "rope_parameters", "rope_theta", "pad_token_id", "bos_token_id", "eos_token_id"}
    assert {k: ours[k] for k in config if k not in renamed} == {k: v for k, v in config.items() if k not in renamed}


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_our_config_as_it_reads_its_own(name):
    AutoConfig = pytest.importorskip("transformers").AutoConfig
    config = parity.reference(name).config
    made = lambda c: AutoConfig.for_model(c["model_type"], **{k: v for k, v in c.items() if k != "model_type"})
    theirs, ours = made(config), made(FAMILY.config(FAMILY.arguments(config)))
    keys = ("hidden_size", "head_dim", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "rope_parameters")
    for key in keys:
        if hasattr(theirs, key):  # Qwen2 has no head_dim: it derives the size
            assert getattr(ours, key) == getattr(theirs, key), key


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"attention_bias": True}, "attention_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type = 'yarn'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 does not divide hidden_size = 32"),
        ({"vocab_size": None}, "lacks vocab_size"),
    ],
)
def test_settings_that_the_network_does_not_have_are_refused(settings, problem):
    config = {**parity.reference("llama_tied").config, **settings}
    with pytest.raises(ValueError, match=problem):
        FAMILY.arguments({key: value for key, value in config.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"heads": 3, "kv_heads": 2}, "kv_heads=2 does not divide heads=3"),
        ({"head_size": 7}, "head_size must be even"),
        ({"depth": 0}, "must be positive"),
        ({"window": 0}, "must be positive"),
        ({"qkv_bias": True, "qk_norm": True}, "no architecture has both"),
    ],
)
def test_sizes_that_make_no_decoder_are_refused(change, problem):
    sizes = {"vocabulary": 64, "width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "head_size": 8, "ffn": 48} | change
    with pytest.raises(ConfigError, match=f"model: .*{problem}"):
        registry.models.build(f"decoder({', '.join(f'{k}={v}' for k, v in sizes.items())})", "model")


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="33 tokens exceed the 32 positions"):
        read({"input_ids": tokens(1, 33, 64)})


# Scanned, unrolled and rematerialised layers


def unstacked(params):
    """Convert the parameters of a scanned decoder to those of an unrolled one."""
    split = {}
    for name, x in params.items():
        first, _, rest = name.partition("/")
        split |= {f"blocks/{n}/{rest}": row for n, row in enumerate(x)} if first == "blocks" else {name: x}
    return split


@pytest.mark.sampled("True-dots")
@pytest.mark.parametrize(
    ("scan", "remat"),
    [
        (False, "none"),
        (True, "dots"),
        slow(True, "full"),
        slow(False, "full"),
        slow(False, "dots"),
    ],
)
def test_scanned_unrolled_and_rematerialised_are_the_same_network(scan, remat):
    batch = {"input_ids": tokens(2, 6, 64)}

    def measured(model, params):
        def loss(params):
            out = parity.run(model, Variables(params, {}), batch)
            return jnp.sum(jnp.sin(out.logits)) + jnp.sum(out.hidden_states[1] ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    (model, values), (other, _) = built(), built(f", scan_layers={scan}, remat={remat!r}")
    shape = dict if scan else unstacked
    value, gradient = measured(model, values.params)
    assert_close(measured(other, shape(values.params)), (value, shape(gradient)), rtol=1e-4, atol=1e-5)


def test_scanned_and_unrolled_decoders_have_the_same_first_values():
    assert_close(built(", scan_layers=False")[1].params, unstacked(built()[1].params))


def test_rematerialising_keeps_less():
    batch = {"input_ids": tokens(8, 32, 64)}

    def kept(remat: str) -> int:
        model, values = built(f", remat={remat!r}")
        run = lambda params: parity.run(model, Variables(params, {}), batch).logits.sum()
        residuals = jax.eval_shape(lambda p: jax.vjp(run, p)[1], values.params)
        return sum(x.size for x in jax.tree.leaves(residuals))

    assert kept("full") < kept("dots") < kept("none")


def test_the_plain_path_that_returns_attentions_agrees_with_the_fused_one():
    batch = {"input_ids": tokens(2, 6, 64), "segment_ids": jnp.array([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 2]])}
    plain, fused = read(batch, ", attentions=True"), read(batch)
    assert_close(plain.hidden_states, fused.hidden_states)
    own = (batch["segment_ids"][:, :, None] == batch["segment_ids"][:, None, :]) & np.tri(6, dtype=bool)
    for weights in parity.probabilities(plain):
        assert_close(weights.sum(-1), np.ones((2, 4, 6)))
        assert float(np.abs(np.where(own[:, None], 0, weights)).max()) == 0


# Attention masks: causal, windows, documents and padding


def test_no_token_depends_on_a_later_one():
    model, values = built()
    batch = {"input_ids": tokens(1, 6, 64)}

    def logits(embedded):  # each token has its own row of the table, whose gradient is the token's
        params = values.params | {"embed/embedding": embedded}
        numbered = {"input_ids": jnp.arange(6)[None]}
        return parity.run(model, Variables(params, {}), numbered).hidden_states[-1][0].sum(-1)

    embedded = values.params["embed/embedding"][batch["input_ids"][0]]
    moved = jnp.abs(jax.jit(jax.jacobian(logits))(jnp.pad(embedded, ((0, 58), (0, 0))))).sum(-1)[:, :6]
    assert float(jnp.abs(jnp.triu(moved, 1)).max()) == 0
    assert float(jnp.diag(moved).min()) > 0 and float(moved[5, 0]) > 0


@pytest.mark.parametrize("options", [", window=3", ", window=3, attentions=True", ", window=6", ", window=9"])
def test_a_token_depends_on_those_of_its_window(options):
    model, values = built(options)
    window = int(options.partition("=")[2].partition(",")[0])

    def first_block(embedded):
        params = values.params | {"embed/embedding": jnp.pad(embedded, ((0, 55), (0, 0)))}
        return parity.run(model, Variables(params, {}), {"input_ids": jnp.arange(9)[None]}).hidden_states[1][0].sum(-1)

    moved = np.abs(np.asarray(jax.jit(jax.jacobian(first_block))(values.params["embed/embedding"][:9]))).sum(-1)
    assert np.array_equal(moved > 0, np.tri(9, dtype=bool) & ~np.tri(9, k=-window, dtype=bool))


def test_a_window_is_of_mistral_alone():
    arguments = FAMILY.arguments(parity.reference("mistral").config)
    assert arguments["window"] == 4 and FAMILY.config(arguments)["model_type"] == "mistral"
    of = lambda **more: FAMILY.arguments({**parity.reference("llama_tied").config, "model_type": "mistral", **more})
    assert of()["window"] == 4096 and of(sliding_window=None)["window"] is None
    without = {key: x for key, x in parity.reference("mistral").config.items() if key != "num_key_value_heads"}
    assert FAMILY.arguments({**without, "num_attention_heads": 16})["kv_heads"] == 8
    assert FAMILY.arguments({**without, "num_attention_heads": 16, "num_key_value_heads": None})["kv_heads"] == 16
    with pytest.raises(ValueError, match="transformers has no qwen3 with a window"):
        FAMILY.config({**arguments, "qk_norm": True})


def test_documents_packed_into_a_row_say_what_each_says_alone():
    first, second = tokens(1, 5, 64, seed=1), tokens(1, 4, 64, seed=2)
    packed = {
        "input_ids": np.concatenate([first, second, np.zeros((1, 3), np.int32)], axis=1),
        "segment_ids": jnp.array([[1] * 5 + [2] * 4 + [0] * 3]),
    }
    logits = read(packed).logits
    assert_close(logits[:, :5], read({"input_ids": first}).logits, atol=1e-5)
    assert_close(logits[:, 5:9], read({"input_ids": second}).logits, atol=1e-5)
    assert bool(jnp.isfinite(logits).all())


def test_padding_behind_a_text_changes_nothing_in_it_and_its_last_token_is_its_embedding():
    text = tokens(1, 4, 64)
    padded = {
        "input_ids": np.pad(text, ((0, 0), (0, 3)), constant_values=9),
        "attention_mask": np.array([[1, 1, 1, 1, 0, 0, 0]], np.int32),
    }
    alone, out = read({"input_ids": text}), read(padded)
    assert_close(out.logits[:, :4], alone.logits)
    assert_close(out.embedding, alone.hidden_states[-1][:, 3])


def test_bfloat16_is_close_to_float32():
    model, values = built()
    batch = {"input_ids": tokens(4, 12, 64)}
    half = jax.jit(lambda v: parity.run(in_dtype(model, "bfloat16"), v, batch).logits)(values)
    want = read(batch).logits
    assert half.dtype == jnp.bfloat16
    assert float(jnp.abs(half.astype(jnp.float32) - want).max()) < 0.05 * float(jnp.abs(want).max())


def test_a_tied_head_is_the_embedding_and_has_no_parameters():
    assert "head/kernel" not in built()[1].params and "head/kernel" in built(", tied=False")[1].params
    out = built()[0].apply(*built()[1], {"input_ids": tokens(1, 3, 64)}, train=False, key=KEY)[0]
    table = built()[1].params["embed/embedding"]
    assert out.logits.tied and out.logits.shape == (1, 3, 64)
    assert_same(out.logits.kernel, table)  # the logits hold the table itself, not a transposed copy
    assert_same(out.logits.dense(), out.logits.features @ table.T)


def test_a_saved_copy_of_a_tied_head_is_no_surplus_and_layers_can_be_chosen(tmp_path):
    ref = parity.reference("llama_tied")
    shapes = {**ref.shapes, "lm_head.weight": ref.shapes["model.embed_tokens.weight"]}
    folder = parity.write_folder(tmp_path, ref._replace(shapes=shapes))
    _, arguments, _, variables = parity.ours(folder, ref.batch, scan_layers=False)
    for scan in (True, False):
        student = {**arguments, "depth": 1, "scan_layers": scan}
        model = FAMILY.factory(**student)
        abstract = Variables(*jax.eval_shape(model.init, KEY, ref.batch))
        source = Safetensors(folder)
        found = load(source, map_weights(source, FAMILY, student, abstract, layers=(1,)), abstract).params
        kernel = found["blocks/up/kernel"][0] if scan else found["blocks/0/up/kernel"]
        assert_same(kernel, variables.params["blocks/1/up/kernel"])
