"""Tests of CLIP and SigLIP: parity with transformers, and logits of all images and texts, on one or more devices."""

import functools
import json

import batches
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from checks import all_finite, assert_close
from examples import slow

import jaxdistill.models  # noqa: F401  (registers the families)
from jaxdistill.core import registry
from jaxdistill.core.collectives import PMAP_AXIS, ROWS
from jaxdistill.core.errors import ConfigError
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.models.combinators import in_dtype
from jaxdistill.models.hub.family import families
from jaxdistill.models.hub.weights import export_arrays
from jaxdistill.models.towers import NO_CANDIDATE
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.parallel.sharding import shardings

REFERENCES = ("clip", "clip_first", "siglip")
every_reference = pytest.mark.parametrize("name", REFERENCES)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Return a function from a reference's name to the reference, its folder and our loaded network, each made once."""

    @functools.cache
    def of(name):
        ref = parity.reference(name)
        folder = parity.write_folder(tmp_path_factory.mktemp(name), ref)
        return ref, folder, *parity.ours(folder, ref.batch)

    return of


# Parity


@pytest.mark.sampled("siglip", "clip")
@every_reference
def test_outputs_are_those_of_transformers(known, name):
    ref, _, _, _, model, variables = known(name)
    out = parity.run(model, variables, ref.batch)
    parity.check_outputs(ref, out)
    assert_close(jnp.linalg.norm(out.embedding, axis=1), jnp.ones(3))
    assert_close(jnp.linalg.norm(out.text_embedding, axis=1), jnp.ones(3))


@pytest.mark.sampled("siglip")
@every_reference
def test_gradients_are_those_of_transformers(known, name):
    parity.check_gradients(known(name)[0], known(name)[1])


@every_reference
def test_what_is_loaded_is_written_as_it_was(known, name):
    _, folder, family, arguments, _, variables = known(name)
    written, theirs = export_arrays(families[family], arguments, variables), parity.Safetensors(folder)
    assert set(written) == set(theirs.arrays)
    for n, x in written.items():
        np.testing.assert_array_equal(x, theirs.read(n, ()), err_msg=n, strict=True)


@every_reference
def test_a_config_and_the_arguments_say_the_same(known, name):
    ref, _, family, arguments, *_ = known(name)
    again = json.loads(json.dumps(families[family].config(arguments)))
    assert families[family].arguments(again) == arguments
    assert again["model_type"] == ref.config["model_type"] and again["architectures"] == ref.config["architectures"]
    for tower in ("vision_config", "text_config"):
        for key in set(again[tower]) & set(ref.config[tower]):
            assert again[tower][key] == ref.config[tower][key], key


@pytest.mark.sampled("clip")
@every_reference
def test_attentions_are_those_of_images_and_change_nothing_else(known, name):
    ref, folder, _, _, model, variables = known(name)
    _, _, asked, _ = parity.ours(folder, ref.batch, attentions=True)
    plain, out = (parity.run(m, variables, ref.batch) for m in (model, asked))
    patches = 16 + (name != "siglip")
    assert (
        parity.probabilities(plain) == []
        and [x.shape for x in parity.probabilities(out)] == [(3, 4, patches, patches)] * 2
    )
    assert_close(sum(x.sum(-1) for x in parity.probabilities(out)), 2 * np.ones((3, 4, patches)))
    assert_close((out.logits, out.hidden_states), (plain.logits, plain.hidden_states), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every_reference
def test_bfloat16_stays_close(known, name):
    ref, _, _, _, model, variables = known(name)
    half = parity.run(in_dtype(model, "bfloat16"), variables, ref.batch)
    assert half.logits.dtype == half.embedding.dtype == half.text_embedding.dtype == jnp.bfloat16
    assert np.abs(half.embedding.astype(np.float32) - ref.said["embedding"]).max() < 0.05
    assert np.abs(half.text_embedding.astype(np.float32) - ref.said["text_embedding"]).max() < 0.05


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"vision_config": {"hidden_act": "gelu"}}, "hidden_act is 'gelu' for images and 'quick_gelu' for texts"),
        ({"text_config": {"eos_token_id": [1, 2]}}, r"eos_token_id=\[1, 2\]: this model needs one end token"),
        ({"vision_config": {"image_size": [224, 192]}}, r"image_size=\[224, 192\]: this model supports squares"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "vision_use_head=False: this model"),
        ({"model_type": "siglip", "text_config": {"projection_size": 64}}, "projection_size=64: this model"),
    ],
)
def test_settings_that_a_network_does_not_have_are_refused(config, said):
    config = {"model_type": "clip"} | config
    with pytest.raises(ValueError, match=said):
        families[parity.hub_family.family_name(config)].arguments(config)


def assert_near(found, expected):
    """Check closeness relative to each array's largest value, as position embeddings have gradients in the hundreds."""
    scaled = lambda tree: jax.tree.map(lambda x, like: x / (1 + np.abs(like).max()), tree, expected)
    assert_close(scaled(jax.device_get(found)), scaled(jax.device_get(expected)), rtol=0, atol=1e-5)


# Comparisons between the rows of a batch


def small(kind):
    sizes = {"vision_width": 16, "vision_depth": 2, "vision_heads": 2, "vision_ffn": 24}
    sizes |= {name.replace("vision", "text"): value for name, value in sizes.items()}
    own = {"projection": 8, "end": 12} if kind == "clip" else {}
    return families[kind].factory(vocabulary=13, patch=4, image=8, channels=1, positions=6, **sizes, **own)


@functools.cache
def world(kind):
    """Build a model, its variables, and a batch of 16 pairs, of which the last 4 are padding."""
    batch = batches.images(rows=16) | batches.texts(rows=16)
    model = small(kind)
    return model, jax.jit(model.init)(KEY, batch), batch


def outputs(kind, batch):
    model, variables, _ = world(kind)
    return jax.jit(lambda rows: model.apply(*variables, rows, train=True, key=KEY)[0])(batch)


both = pytest.mark.parametrize("kind", ["clip", "siglip"])
one_soon = pytest.mark.parametrize("kind", [slow("clip"), "siglip"])


@one_soon
def test_each_image_is_compared_with_the_texts_that_count(kind):
    _, _, batch = world(kind)
    out = outputs(kind, batch)
    assert out.logits.shape == (16, 16) and all_finite(out)
    assert (out.logits[:, 12:] == NO_CANDIDATE).all() and (out.logits[:, :12] > NO_CANDIDATE).all()
    foreign = {"image": batch["image"].at[12:].set(1e3), "input_ids": batch["input_ids"].at[12:].set(3)}
    changed = outputs(kind, batch | foreign)
    for name in ("logits", "embedding", "text_embedding", "hidden_states"):
        assert_close(*(jax.tree.map(lambda x: np.asarray(x)[:12], getattr(each, name)) for each in (changed, out)))


@one_soon
def test_the_order_of_pairs_is_that_of_rows_and_columns(kind):
    _, _, batch = world(kind)
    order = np.random.default_rng(0).permutation(16)
    out, permuted = outputs(kind, batch), outputs(kind, {name: x[order] for name, x in batch.items()})
    assert_close(permuted.logits, out.logits[order][:, order], rtol=1e-4, atol=1e-4)
    assert_close(permuted.text_embedding, out.text_embedding[order], rtol=1e-4, atol=1e-5)


def contrast(kind, variables, batch):
    """Return the sum of sin(logit) over this device's images and all texts, without those that are padding."""
    out, _ = world(kind)[0].apply(*variables, batch, train=True, key=KEY)
    return jnp.sum(jnp.sin(jnp.where(out.logits > NO_CANDIDATE, out.logits, 0.0)) * batch["mask"][:, None])


@one_soon
@pytest.mark.slow
def test_texts_of_other_devices_are_compared_under_pmap_too(kind):
    _, (params, state), batch = world(kind)
    shards = {name: x.reshape(4, 4, *x.shape[1:]) for name, x in batch.items()}  # a named vmap has pmap's collectives
    one = jax.device_get(jax.jit(jax.value_and_grad(lambda p: contrast(kind, (p, state), batch)))(params))
    each = jax.vmap(lambda p, rows: contrast(kind, (p, state), rows), (None, 0), axis_name=PMAP_AXIS)
    found = jax.jit(jax.value_and_grad(lambda p: each(p, shards).sum()))(params)
    assert_near(found, one)


@pytest.mark.slow
@one_soon
def test_gradients_on_a_mesh_of_three_axes_are_those_of_one_device(kind):
    _, (params, state), batch = world(kind)
    one = jax.device_get(jax.jit(jax.value_and_grad(lambda p, rows: contrast(kind, (p, state), rows)))(params, batch))
    mesh = make_mesh((2, 2, 2))
    laid = shardings(params, mesh)
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch, jax.NamedSharding(mesh, ROWS))
        value = jax.value_and_grad(lambda p, rows: contrast(kind, (p, state), rows))
        found = jax.jit(value, out_shardings=(jax.NamedSharding(mesh, jax.P()), laid))(
            jax.device_put(params, laid), rows
        )
    assert_near(found, one)


@pytest.mark.sampled("siglip")
@both
def test_texts_that_are_too_long_and_images_of_another_size_are_refused(kind):
    model, variables, batch = world(kind)
    with pytest.raises(ValueError, match="texts of 12 tokens exceed the 6 positions; truncate the texts"):
        longer = {name: jnp.tile(batch[name], 2) for name in ("input_ids", "attention_mask")}
        jax.eval_shape(lambda: model.apply(*variables, batch | longer, train=False, key=KEY))
    with pytest.raises(ValueError, match=r"images of \[8, 8, 1\], not \[12, 12, 1\]"):
        jax.eval_shape(model.init, KEY, batch | {"image": jnp.zeros((16, 12, 12, 1))})


def test_siglip_reads_texts_that_are_padded_to_its_positions_alone():
    """Check that padding is visible, as in the authors' code, and that shorter texts are refused."""
    model, variables, batch = world("siglip")
    run = lambda rows: model.apply(*variables, rows, train=False, key=KEY)[0].text_embedding
    hidden = batch | {"attention_mask": jnp.zeros_like(batch["attention_mask"])}
    assert_close(run(hidden), run(batch))
    with pytest.raises(ValueError, match="padded to 6 tokens, and these have 5; set length=6 in"):
        run(batch | {"input_ids": batch["input_ids"][:, :5], "attention_mask": batch["attention_mask"][:, :5]})


@one_soon
def test_the_logits_of_pairs_are_no_classes(kind):
    """Check that logits over the texts of a batch are refused where classes are needed, as in caches and accuracy."""
    model, batch = small(kind), batches.images(rows=16) | batches.texts(rows=16)
    for rows in (2, 4):
        shapes = {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in batch.items()}
        with pytest.raises(ConfigError, match=r"teachers\.clip\.model: its logits compare the images and the texts of"):
            abstract_outputs(model, "teachers.clip.model", shapes)


def test_as_many_classes_as_rows_are_classes():
    model = registry.models.build("mlp(widths=(4,), classes=3)", "student.model")
    shapes = {"image": jax.ShapeDtypeStruct((3, 8, 8, 1), jnp.float32)}
    assert abstract_outputs(model, "student.model", shapes)[0].logits.shape == (3, 3)
