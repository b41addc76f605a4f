"""Tests of GPT-2, ModernBERT and ELECTRA: parity with transformers, checkpoints, attention masks, and pooling."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from checks import assert_close, assert_same
from golden.weights import tokens
from safetensors.numpy import load_file, save_file

from jaxdistill.compress.axes import CUTTABLE
from jaxdistill.core import registry, seal
from jaxdistill.core.errors import ConfigError, DamageError, WeightsError
from jaxdistill.core.types import Variables
from jaxdistill.models.hub.family import families, family_name
from jaxdistill.models.hub.weights import export_arrays

KEY = jax.random.key(0)
NAMES = ("gpt2", "gpt2_untied", "modernbert_cls", "modernbert_mean", "modernbert_embedding")
GPT2 = "gpt2(vocabulary=64, width=32, depth=2, heads=4, positions=32"
MODERNBERT = "modernbert(vocabulary=64, width=32, depth=4, heads=4, ffn=24, classes=3, positions=32, window=4"


def built(spec: str):
    model = registry.models.build(spec, "model")
    return model, Variables(*jax.jit(model.init)(KEY, {"input_ids": tokens(2, 6, 64)}))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_transformers(name, tmp_path):
    ref = parity.reference(name)
    folder, attentions = parity.write_folder(tmp_path, ref), "attention/0" in ref.said
    *_, model, variables = parity.ours(folder, ref.batch, attentions=attentions)
    out = parity.run(model, variables, ref.batch)
    parity.check_outputs(ref, out)
    assert bool(parity.probabilities(out)) == attentions
    parity.check_gradients(ref, folder)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_loaded_is_written_and_loaded_again_to_the_bit(name, tmp_path):
    ref = parity.reference(name)
    folder, family = parity.write_folder(tmp_path / "a", ref), families[family_name(ref.config)]
    _, arguments, _, variables = parity.ours(folder, ref.batch)
    written, first = export_arrays(family, arguments, variables), load_file(folder / "model.safetensors")
    prefix = "model." if name == "modernbert_embedding" else ""
    assert_same({prefix + n: x for n, x in first.items()}, written)
    again = parity.write_folder(tmp_path / "b", ref._replace(config=family.config(arguments)))
    save_file(written, again / "model.safetensors")
    *_, reloaded = parity.ours(again, ref.batch)
    assert_same(reloaded, variables)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_our_config_as_it_reads_its_own(name):
    AutoConfig = pytest.importorskip("transformers").AutoConfig
    config = parity.reference(name).config
    family = families[family_name(config)]
    arguments = family.arguments(config)
    assert family.arguments(family.config(arguments)) == arguments
    made = lambda c: AutoConfig.for_model(c["model_type"], **{k: v for k, v in c.items() if k != "model_type"})
    theirs, ours = made(config).to_dict(), made(family.config(arguments)).to_dict()
    free = (
        "architectures",
        "pdrop",
        "token_id",
        "dtype",
        "version",
        "label",
        "dropout",
        "path",
        "attn_implementation",
        "use_cache",
    )
    same = [key for key in theirs if not any(text in key for text in free)]
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same} and len(same) > 10


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("gpt2", {"activation_function": "swish"}, "activation_function='swish'"),
        ("gpt2", {"activation_function": "quick_gelu"}, "activation_function='quick_gelu'"),
        ("modernbert_cls", {"rope_parameters": {"rope_theta": 1e4}}, "has no entry for each kind of layer"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"n_embd": None}, "lacks n_embd"),
        ("modernbert_cls", {"attention_bias": True}, "attention_bias=True"),
        ("modernbert_cls", {"layer_types": ["full_attention"] * 4}, "only full attention in every 3-th layer"),
        ("modernbert_cls", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type='yarn'"),
    ],
)
def test_settings_that_a_network_does_not_have_are_refused(name, settings, problem):
    config = {**parity.reference(name).config, **settings}
    with pytest.raises(ValueError, match=problem):
        families[family_name(config)].arguments({key: x for key, x in config.items() if x is not None})


def test_null_settings_of_modernbert_have_the_meaning_of_transformers():
    config = {**parity.reference("modernbert_cls").config, "local_rope_theta": None, "classifier_dropout": None}
    arguments = families["modernbert"].arguments({**config, "rope_parameters": None, "global_rope_theta": 5e4})
    assert arguments["thetas"] == (5e4, 5e4) and arguments["head_dropout"] == 0.0
    embedder = {
        **parity.reference("modernbert_embedding").config,
        "classifier_pooling": "mean",
        "sentence_pooling": "cls",
    }
    assert families["modernbert"].arguments(embedder)["pool"] == "cls"


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (f"{GPT2}, ffn=0)", "must be positive"),
        (GPT2.replace("heads=4", "heads=5") + ")", "heads=5 does not divide width=32"),
        (MODERNBERT.replace("heads=4", "heads=32") + ")", "heads=32 must divide width=32 into heads of an even size"),
        (f"{MODERNBERT}, dropout=1.0)", "dropout must be at least 0 and below 1"),
        (f"{MODERNBERT}, every=0)", "must be positive"),
    ],
)
def test_sizes_that_make_no_network_are_refused(spec, problem):
    with pytest.raises(ConfigError, match=problem):
        registry.models.build(spec, "model")


def test_more_tokens_than_positions_are_refused():
    for spec in (f"{GPT2})", f"{MODERNBERT})"):
        model, variables = built(spec)
        with pytest.raises(ValueError, match="33 tokens exceed the 32 positions"):
            parity.run(model, variables, {"input_ids": jnp.zeros((1, 33), jnp.int32)})


def test_the_head_of_another_task_is_named_and_left_out(tmp_path):
    ref = parity.reference("modernbert_embedding")
    folder = parity.write_folder(tmp_path, ref)
    head = {"head.dense.weight": np.ones((32, 32), np.float32), "decoder.bias": np.ones(60, np.float32)}
    arrays = load_file(folder / "model.safetensors")
    save_file({**{f"model.{n}": x for n, x in arrays.items()}, **head}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"decoder\.bias"):
        parity.ours(folder, ref.batch)
    parity.write_folder(tmp_path, ref._replace(config={**ref.config, "architectures": ["ModernBertForMaskedLM"]}))
    save_file({**{f"model.{n}": x for n, x in arrays.items()}, **head}, folder / "model.safetensors")
    *_, variables = parity.ours(folder, ref.batch)
    assert not any(name.startswith("head") for name in variables.params)


def reach(spec: str, layer: int) -> np.ndarray:
    """Return a matrix, True where a token of a hidden state (row) depends on the embedding of a token (column)."""
    model, variables = built(spec)

    def states(embedded):
        params = variables.params | {"embed/embedding": jnp.pad(embedded, ((0, 52), (0, 0)))}
        out = parity.run(model, Variables(params, variables.state), {"input_ids": jnp.arange(12)[None]})
        return out.hidden_states[layer][0].sum(-1)

    embedded = jax.random.normal(KEY, (12, 32))
    return np.abs(np.asarray(jax.jit(jax.jacobian(states))(embedded))).sum(-1) > 1e-9


def test_a_token_of_gpt2_depends_on_none_after_it():
    assert np.array_equal(reach(f"{GPT2})", 1), np.tri(12, dtype=bool))


def test_every_third_block_of_modernbert_sees_all_tokens_and_the_others_near_ones():
    """Check that block 0 sees all tokens, and that with `every=9` all later blocks see only near ones."""
    assert reach(f"{MODERNBERT})", 1).all()
    model, variables = built(f"{MODERNBERT}, every=9, attentions=True)")
    near = np.abs(np.subtract.outer(np.arange(12), np.arange(12))) <= 2
    first, *others = parity.probabilities(parity.run(model, variables, {"input_ids": jnp.arange(12)[None]}))
    assert np.asarray(first > 0).all()
    for weights in others:
        assert np.array_equal(np.asarray(weights[0] > 0), np.broadcast_to(near, (4, 12, 12)))


def test_padding_changes_no_logit_of_modernbert():
    model, variables = built(f"{MODERNBERT})")
    ids = tokens(2, 7, 64)
    padded = {"input_ids": np.pad(ids, ((0, 0), (0, 4)), constant_values=9)}
    padded["attention_mask"] = np.pad(np.ones((2, 7), np.int32), ((0, 0), (0, 4)))
    said = [parity.run(model, variables, batch).logits for batch in ({"input_ids": ids}, padded)]
    assert_close(said[0], said[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_the_pooling_of_sentence_transformers_is_that_of_the_model(mode, tmp_path, capsys):
    """Check that 1_Pooling/config.json is read and sealed, as another pooling gives wrong embeddings and no error."""
    ref = parity.reference("bert_embedding")
    folder = parity.write_folder(tmp_path, ref)
    (folder / "1_Pooling").mkdir()
    write = lambda **modes: (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    write(pooling_mode_cls_token=mode == "cls", pooling_mode_mean_tokens=mode == "mean")
    _, arguments, model, variables = parity.ours(folder, ref.batch)
    assert arguments["pool"] == mode
    states = np.asarray(ref.said["hidden/3"])
    real = np.asarray(ref.batch["attention_mask"])[:, :, None]
    wanted = states[:, 0] if mode == "cls" else (states * real).sum(1) / real.sum(1)
    wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
    assert_close(parity.run(model, variables, ref.batch).embedding, wanted, rtol=1e-4, atol=1e-5)
    seal.seal_folder(folder)
    parity.ours(folder, ref.batch)
    write(pooling_mode_max_tokens=True)
    with pytest.raises(DamageError, match=r"1_Pooling/config\.json has changed"):
        parity.ours(folder, ref.batch)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(DamageError, match=r"1_Pooling/config\.json is missing"):
        parity.ours(folder, ref.batch)
    seal.seal_folder(folder)
    write(pooling_mode_max_tokens=True)
    with pytest.raises(DamageError, match=r"1_Pooling/config\.json was added after"):
        parity.ours(folder, ref.batch)
    (folder / seal.FOLDER_SEAL).unlink()
    assert "pool" not in parity.ours(folder, ref.batch)[1]
    assert "pools tokens in a way that this library lacks" in capsys.readouterr().err


def test_a_cut_electra_keeps_its_projection_or_has_none():
    cuttable, sizes = (
        CUTTABLE["bert"],
        {"vocabulary": 60, "depth": 1, "heads": 2, "ffn": 8, "classes": 2, "style": "electra"},
    )
    for width, embedding in ((16, 8), (16, None)):
        arguments = {**sizes, "width": width, "embedding": embedding, "positions": 16}
        smaller = {**arguments, "width": 8 if embedding is None else 12}
        batch = {"input_ids": jnp.zeros((1, 4), jnp.int32)}
        names = lambda given, batch=batch: set(jax.eval_shape(registry.models["bert"](**given).init, KEY, batch)[0])
        assert names(arguments) == names(smaller)
        rules = {rule.name: rule.axes for rule in cuttable.rules(arguments)}
        assert rules["embed/token/embedding"] == ("vocabulary", "" if embedding else "width")
    sizes_text = "vocabulary=60, depth=1, heads=2, ffn=8, classes=2"
    with pytest.raises(ConfigError, match="embedding=16 is the width, between which nothing is projected"):
        registry.models.build(f"bert({sizes_text}, style='electra', width=16, embedding=16)", "model")


def test_an_electra_config_without_the_width_of_the_embeddings_has_128_as_in_transformers():
    config = {**parity.reference("electra_classifier").config, "hidden_size": 256}
    del config["embedding_size"]
    read = families[family_name(config)].arguments
    assert read(config)["embedding"] == 128
    assert "embedding" not in read({**config, "hidden_size": 128})


@pytest.mark.parametrize(("style", "drops"), [("electra", True), ("roberta", True), ("bert", False)])
def test_the_input_of_the_head_has_dropout_in_electra_and_roberta(style, drops):
    """Check the embedding, the output of the head's first layer, which only dropout of the head's input can change."""
    sizes = "vocabulary=64, width=16, depth=1, heads=2, ffn=8, classes=3, positions=32"
    model, variables = built(f"bert({sizes}, style={style!r}, head_dropout=0.5)")
    apply = jax.jit(functools.partial(model.apply, train=True))
    batch = {"input_ids": tokens(2, 6, 64)}
    said = [apply(*variables, batch, key=jax.random.key(seed))[0].embedding for seed in (0, 1)]
    assert np.array_equal(*said) != drops
