"""Tests of BERT and its variants: parity with transformers, checkpoints, smaller students, padding and dropout."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from checks import all_finite, assert_close, assert_same
from examples import slow
from safetensors.numpy import load_file, save_file

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, WeightsError
from jaxdistill.core.spec import Spec
from jaxdistill.core.types import Variables
from jaxdistill.models.bert import STYLES
from jaxdistill.models.combinators import in_dtype
from jaxdistill.models.hub import slice
from jaxdistill.models.hub.family import families
from jaxdistill.models.hub.source import Safetensors
from jaxdistill.models.hub.weights import export_arrays, load, map_weights

NAMES = ("bert_classifier", "bert_embedding", "roberta_classifier", "distilbert_classifier", "xlm_roberta_classifier")
NAMES += ("camembert_classifier", "electra_classifier", "electra_embedding")
FAMILY = families["bert"]
SMALL = "vocabulary=60, width=16, depth=2, heads=2, ffn=24, positions=16"
KEY = jax.random.key(0)
run = jax.jit(parity.run, static_argnums=0)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Return a function from a reference's name to the reference, its folder and our loaded network, each made once."""
    found = {}

    def of(name):
        if name not in found:
            ref = parity.reference(name)
            folder = parity.write_folder(tmp_path_factory.mktemp(name), ref)
            found[name] = ref, folder, *parity.ours(folder, ref.batch)
        return found[name]

    return of


def small(spec):
    model = registry.models.build(f"bert({SMALL}, {spec})", "model")
    return model, Variables(*jax.jit(model.init)(KEY, {"input_ids": jnp.zeros((2, 5), jnp.int32)}))


def plan_of(folder, arguments, batch, **cuts):
    model = registry.models["bert"](**arguments)
    shapes = Variables(*jax.eval_shape(model.init, KEY, batch))
    source = Safetensors(folder)
    return model, shapes, source, map_weights(source, FAMILY, arguments, shapes, **cuts)


# Parity


@pytest.mark.sampled("bert_classifier", "distilbert_classifier")
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_transformers_padded_tokens_included(known, name):
    ref, _, _, _, model, variables = known(name)
    without = ref._replace(said={n: x for n, x in ref.said.items() if not n.startswith("attention/")})
    parity.check_outputs(without, run(model, variables, ref.batch))


def test_attentions_asked_for_change_nothing_else_and_are_those_of_transformers(known):
    ref, folder, *_ = known("bert_classifier")
    *_, model, variables = parity.ours(folder, ref.batch, attentions=True)
    out = run(model, variables, ref.batch)
    assert [x.shape for x in parity.probabilities(out)] == [(4, 4, 9, 9)] * 2
    parity.check_outputs(ref, out)


@pytest.mark.sampled("bert_classifier")
@pytest.mark.parametrize("name", [*NAMES[:2], *map(slow, NAMES[2:])])
def test_gradients_are_those_of_transformers(known, name):
    ref, folder, *_ = known(name)
    parity.check_gradients(ref, folder)


@pytest.mark.parametrize("name", ["bert_embedding", "roberta_classifier"])
def test_bfloat16_stays_close(known, name):
    ref, _, _, _, model, variables = known(name)
    out = run(in_dtype(model, "bfloat16"), variables, ref.batch)
    assert out.logits.dtype == jnp.bfloat16
    assert_close(out.logits.astype(jnp.float32), ref.said["logits"], rtol=0.05, atol=0.05)


# To and from checkpoints


@pytest.mark.parametrize("name", NAMES)
def test_what_was_loaded_is_written_and_loaded_again_to_the_bit(known, name, tmp_path):
    ref, folder, _, arguments, _, variables = known(name)
    written = export_arrays(FAMILY, arguments, variables)
    first = load_file(folder / "model.safetensors")
    unused = {n for n in first if n.startswith("pooler.")}
    prefix = "" if arguments["classes"] else f"{STYLES[arguments['style']].base}."
    assert written.keys() == {prefix + n for n in first.keys() - unused}
    assert_same({prefix + n: first[n] for n in first.keys() - unused}, written)
    again = parity.write_folder(tmp_path, ref._replace(config=FAMILY.config(arguments)))
    save_file(written, again / "model.safetensors")
    *_, reloaded = parity.ours(again, ref.batch)
    assert_same(reloaded, variables)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_comes_back_with_every_setting_that_matters(known, name):
    ref, _, _, arguments, *_ = known(name)
    config = FAMILY.config(arguments)
    assert FAMILY.arguments(config) == arguments
    free = ("classifier_dropout", "id2label", "label2id")  # theirs have None, and text as keys of the label maps
    assert {n: ref.config[n] for n in config if n not in free} == {n: x for n, x in config.items() if n not in free}
    assert len(config.get("id2label", ())) == arguments["classes"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_base_model_becomes_a_classifier_whose_head_is_fresh(known, kind, tmp_path):
    ref, folder, _, arguments, _, variables = known(f"{kind}_classifier")
    tensors = load_file(folder / "model.safetensors")
    base = {n.removeprefix(f"{kind}."): x for n, x in tensors.items() if n.startswith(f"{kind}.")}
    bare = parity.write_folder(tmp_path, ref)
    save_file(base, bare / "model.safetensors")
    *_, source, planned = plan_of(bare, arguments, ref.batch)
    layers = ("out",) if kind == "bert" else ("dense", "out")  # BERT's pooler is a part of the base model
    assert set(planned.fresh) == {f"head/{layer}/{part}" for layer in layers for part in ("kernel", "bias")}
    loaded = load(source, planned, jax.eval_shape(lambda: variables)).params
    assert_same(loaded, {n: x for n, x in variables.params.items() if n not in planned.fresh})


def of_architecture(folder, name):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [name] if name else None}))


HEADS = {
    "BertForMaskedLM": {"cls.predictions.bias": 60},
    "BertForTokenClassification": {"classifier.weight": 9},
    "BertForQuestionAnswering": {"qa_outputs.weight": 2},
    "BertForPreTraining": {"cls.seq_relationship.bias": 2},
}


@pytest.mark.parametrize("architecture", HEADS)
def test_a_head_of_another_task_is_dropped_only_if_the_spec_says_so(architecture, known, tmp_path):
    ref, folder, *_ = known("bert_classifier")
    tensors = {n: x for n, x in load_file(folder / "model.safetensors").items() if not n.startswith("classifier")}
    tensors |= {name: np.zeros((size, 8), np.float32) for name, size in HEADS[architecture].items()}
    other = parity.write_folder(tmp_path, ref)
    save_file(tensors, other / "model.safetensors")
    of_architecture(other, architecture)

    def loading(**options):
        model = registry.models.build(Spec("pretrained", (str(other),), options), "student.model")
        return model.load(Variables(*jax.eval_shape(model.init, jax.random.key(0), ref.batch)))

    with pytest.raises(ConfigError, match=f"is a {architecture}, and this model does not have its head. Set cl"):
        loading()
    assert loading(classes=0).fresh == ()
    assert set(loading(classes=4).fresh) >= {"head/out/kernel", "head/out/bias"}
    of_architecture(other, "")  # without an architecture, nothing tells what the head is
    with pytest.raises(WeightsError, match=rf"{next(iter(HEADS[architecture]))} \[\d+, 8\] is surplus"):
        loading(classes=0)


def test_buffers_are_ignored_and_foreign_arrays_are_not(known, tmp_path):
    ref, folder, *_ = known("bert_classifier")
    tensors = load_file(folder / "model.safetensors")
    other = parity.write_folder(tmp_path, ref)
    save_file(tensors | {"bert.embeddings.position_ids": np.arange(16)[None]}, other / "model.safetensors")
    parity.ours(other, ref.batch)
    _, _, model, variables = parity.ours(other, ref.batch, classes=0)
    assert not any(n.startswith("head/") for n in variables.params)
    assert_close(jnp.linalg.norm(run(model, variables, ref.batch).logits, axis=-1), jnp.ones(4))
    save_file(tensors | {"bert.adapter.weight": np.zeros(3, np.float32)}, other / "model.safetensors")
    with pytest.raises(WeightsError, match=r"bert\.adapter\.weight"):
        parity.ours(other, ref.batch)


def test_the_first_checkpoints_called_the_norms_arrays_gamma_and_beta(known, tmp_path):
    ref, folder, _, _, _, variables = known("bert_classifier")
    old = lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    aged = parity.write_folder(tmp_path, ref)
    tensors = {old(n): x for n, x in load_file(folder / "model.safetensors").items()}
    assert any(n.endswith("gamma") for n in tensors)
    save_file(tensors, aged / "model.safetensors")
    *_, loaded = parity.ours(aged, ref.batch)
    assert_same(loaded, variables)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("bert_classifier", {"is_decoder": True}, "is_decoder=True"),
        ("bert_classifier", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("bert_classifier", {"hidden_act": "mish"}, "hidden_act='mish': .* 'gelu'"),
        ("distilbert_classifier", {"activation": "mish"}, "activation='mish'"),
        ("roberta_classifier", {"layer_norm_eps": None}, "no layer_norm_eps"),
    ],
)
def test_settings_that_the_network_does_not_have_are_refused_by_name(known, name, change, says):
    with pytest.raises(ValueError, match=says):
        FAMILY.arguments(known(name)[0].config | change)


def test_settings_that_a_config_leaves_out_are_those_of_its_kind(known):
    config = {n: x for n, x in known("roberta_classifier")[0].config.items() if n not in ("pad_token_id", "id2label")}
    arguments = FAMILY.arguments(config | {"classifier_dropout": None, "hidden_dropout_prob": 0.25})
    assert (arguments["pad"], arguments["classes"], arguments["head_dropout"]) == (1, 2, 0.25)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("classes=2, width=10", "heads=4 does not divide width=10"),
        ("classes=2, style='distilbert'", "token_types=0"),
        ("classes=2, dropout=1.0", "dropout must be at least 0 and below 1"),
        ("classes=2, activation='swish'", "activation='swish'"),
    ],
)
def test_sizes_that_make_no_model_are_refused(spec, problem):
    sizes = "vocabulary=60, depth=2, heads=4, ffn=24" + ("" if "width" in spec else ", width=16")
    with pytest.raises(ConfigError, match=problem):
        registry.models.build(f"bert({sizes}, {spec})", "student.model")


# Smaller students


def test_a_student_is_cut_from_a_teacher_along_every_axis(known):
    ref, folder, _, arguments, *_ = known("bert_embedding")
    cuts = {
        "width": slice.keep_evenly(32, 16),
        "heads": slice.heads_to_units(slice.keep_units((0, 2)), 8),
        "ffn": slice.average_neighbours(48, 24),
        "vocabulary": slice.keep_units(tuple(range(59))),
    }
    less = arguments | {"width": 16, "heads": 2, "ffn": 24, "vocabulary": 59, "depth": 2}
    model, shapes, source, planned = plan_of(folder, less, ref.batch, layers=(0, 2), selections=cuts)
    student = load(source, planned, shapes)
    assert not planned.fresh and student.params.keys() == shapes.params.keys()
    theirs = load_file(folder / "model.safetensors")
    whole = theirs["encoder.layer.2.intermediate.dense.weight"]
    assert_close(student.params["blocks/1/up/kernel"], whole.reshape(24, 2, 32).mean(1)[:, ::2].T)
    ids = jnp.minimum(ref.batch["input_ids"], 58)
    assert all_finite(run(model, student, ref.batch | {"input_ids": ids}))


# Padding, masks, pooling and dropout


@pytest.mark.sampled("classes=0")
@pytest.mark.parametrize("spec", ["classes=0", "classes=3, style='roberta', attentions=True"])
def test_more_padding_changes_nothing_that_was_there(spec):
    model, variables = small(spec)
    ids = jax.random.randint(KEY, (3, 6), 1, 60)
    real = jnp.arange(6) < jnp.array([[6], [3], [1]])
    ids = jnp.where(real, ids, 0)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 4)))
    out = run(model, variables, {"input_ids": ids, "attention_mask": real})
    more = run(model, variables, {"input_ids": pad(ids), "attention_mask": pad(real)})
    assert_close(more.logits, out.logits, atol=1e-5)
    assert_close([x[:, :6] for x in more.hidden_states], list(out.hidden_states), atol=1e-5)
    assert_close([x[:, :, :6, :6] for x in parity.probabilities(more)], parity.probabilities(out), atol=1e-5)
    assert all(not x[..., 6:].any() for x in parity.probabilities(more))


@pytest.mark.parametrize("spec", ["classes=0", slow("classes=0, pool='cls', attentions=True")])
def test_a_text_without_any_token_is_finite_and_so_are_its_gradients(spec):
    model, variables = small(spec)
    batch = {"input_ids": jnp.zeros((2, 5), jnp.int32), "attention_mask": jnp.array([[1] * 5, [0] * 5])}
    loss = lambda values: jnp.sum(parity.run(model, values, batch).logits ** 3)
    assert all_finite(run(model, variables, batch)) and all_finite(jax.jit(jax.grad(loss))(variables))


def test_a_batch_without_a_mask_or_types_has_only_real_tokens_of_the_first_type():
    model, variables = small("classes=3")
    ids = jax.random.randint(KEY, (3, 6), 0, 60)
    plain = run(model, variables, {"input_ids": ids})
    spelt = {"input_ids": ids, "attention_mask": jnp.ones_like(ids), "token_type_ids": jnp.zeros_like(ids)}
    assert_same(run(model, variables, spelt), plain)
    other = run(model, variables, spelt | {"token_type_ids": jnp.ones_like(ids)})
    assert not np.allclose(other.logits, plain.logits)


def test_the_first_token_can_stand_for_a_text():
    model, variables = small("classes=0, pool='cls'")
    out = run(model, variables, {"input_ids": jax.random.randint(KEY, (3, 6), 0, 60)})
    first = out.hidden_states[-1][:, 0]
    assert_close(out.embedding, first / jnp.linalg.norm(first, axis=-1, keepdims=True))
    assert_same(out.logits, out.embedding)


@pytest.mark.sampled("roberta-15")
@pytest.mark.parametrize(("style", "limit"), [("bert", 16), ("roberta", 15)])
def test_texts_longer_than_the_table_of_positions_are_refused(style, limit):
    model, variables = small(f"classes=3, style='{style}'")
    fits = run(model, variables, {"input_ids": jnp.ones((1, limit), jnp.int32)})
    assert all_finite(fits)
    with pytest.raises(ValueError, match=f"{limit + 1} tokens exceed the {limit} positions"):
        run(model, variables, {"input_ids": jnp.ones((1, limit + 1), jnp.int32)})


@pytest.mark.sampled("attention_dropout")
@pytest.mark.parametrize("place", ["dropout", "attention_dropout", "head_dropout"])
def test_every_place_of_dropout_draws_by_key_in_training_only(place):
    model, variables = small(f"classes=3, style='roberta', {place}=0.5")
    batch = {"input_ids": jax.random.randint(KEY, (4, 6), 1, 60)}
    apply = jax.jit(model.apply, static_argnames="train")
    logits = lambda train, seed: apply(*variables, batch, train=train, key=jax.random.key(seed))[0].logits
    assert_same(logits(True, 0), logits(True, 0))
    assert not np.allclose(logits(True, 0), logits(True, 1))
    assert_same(logits(False, 0), logits(False, 1))


def test_attention_dropout_leaves_the_returned_probabilities_whole():
    model, variables = small("classes=3, attention_dropout=0.5, attentions=True")
    batch = {"input_ids": jax.random.randint(KEY, (4, 6), 1, 60)}
    out, _ = jax.jit(model.apply, static_argnames="train")(*variables, batch, train=True, key=KEY)
    assert_close([x.sum(-1) for x in parity.probabilities(out)], [np.ones((4, 2, 6))] * 2)


# Real weights


@pytest.mark.slow
def test_minilm_embeds_sentences_as_pytorch_does(tmp_path):
    from experiments.parity import minilm

    assert minilm.cosines(minilm.fetched(tmp_path)).min() >= 0.9999
