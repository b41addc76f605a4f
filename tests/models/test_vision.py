"""Tests of vision families: parity with transformers and timm, checkpoints, bfloat16, padding, and errors."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from golden.weights import images
from safetensors.numpy import load_file, save_file

import jaxdistill.models  # noqa: F401  (registers the families)
from jaxdistill.models.build import build_model
from jaxdistill.models.combinators import in_dtype
from jaxdistill.models.hub.family import families, family_name
from jaxdistill.models.hub.weights import export_arrays

DINO = ("dinov2", "dinov2_smaller", "dinov2_wider", "dinov2_registers", "dinov2_registers_smaller")
RESNETS = ("resnet_bottleneck", "resnet_basic", "resnet_variant")
REFERENCES = ("efficientnet_lite", "vit", "vit_variant", "deit", *DINO, *RESNETS)
every_reference = pytest.mark.parametrize("name", REFERENCES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function from a reference's name to its Hugging Face folder, which is written once."""
    return functools.cache(lambda name: parity.write_folder(tmp_path_factory.mktemp(name), parity.reference(name)))


@pytest.mark.sampled("vit", "resnet_basic", "efficientnet_lite")
@every_reference
def test_outputs_are_those_of_the_published_code(name, folder):
    ref = parity.reference(name)
    _, _, model, variables = parity.ours(folder(name), ref.batch)
    without = ref._replace(said={n: x for n, x in ref.said.items() if not n.startswith("attention/")})
    parity.check_outputs(without, parity.run(model, variables, ref.batch))


@pytest.mark.sampled("resnet_basic", "vit")
@every_reference
def test_gradients_are_those_of_the_published_code(name, folder):
    parity.check_gradients(parity.reference(name), folder(name))


@every_reference
def test_what_is_loaded_is_written_as_it_was(name, folder):
    ref = parity.reference(name)
    family, arguments, _, variables = parity.ours(folder(name), ref.batch)
    written = export_arrays(families[family], arguments, variables)
    theirs = parity.Safetensors(folder(name))
    assert set(written) == {n for n in theirs.arrays if not n.endswith("mask_token")}  # of the pretraining alone
    for n, x in written.items():
        np.testing.assert_array_equal(x, theirs.read(n, ()), err_msg=n, strict=True)


@every_reference
def test_a_config_and_the_arguments_say_the_same(name):
    config = parity.reference(name).config
    family = families[parity.hub_family.family_name(config)]
    arguments = family.arguments(config)
    again = json.loads(json.dumps(family.config(arguments)))
    assert family.arguments(again) == arguments
    assert again["model_type"] == config["model_type"] and again["architectures"]
    for key in set(again) & set(config) - {"architectures", "use_mask_token"}:
        assert np.array_equal(again[key], config[key]), key


@pytest.mark.sampled("vit")
@every_reference
def test_bfloat16_stays_close(name, folder):
    ref = parity.reference(name)
    _, _, model, variables = parity.ours(folder(name), ref.batch)
    half = parity.run(in_dtype(model, "bfloat16"), variables, ref.batch).logits.astype(np.float32)
    assert np.abs(half - ref.said["logits"]).max() < 0.05 * max(1.0, np.abs(ref.said["logits"]).max())


@pytest.mark.sampled("resnet_basic", "vit")
@every_reference
def test_a_row_of_padding_does_not_change_the_rest(name, folder):
    ref = parity.reference(name)
    _, _, model, variables = parity.ours(folder(name), ref.batch)
    padded = {n: np.concatenate([x, np.full_like(x[:1], 7.0)]) for n, x in ref.batch.items()}
    padded["mask"][-1] = 0.0
    logits = parity.run(model, variables, padded).logits[:-1]
    np.testing.assert_allclose(logits, ref.said["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dinov2", "dinov2_registers"])
def test_a_published_backbone_has_no_head_and_embeds(name, tmp_path):
    ref = parity.reference(name)
    prefix = f"{ref.config['model_type']}."
    shapes = {n: shape for n, shape in ref.shapes.items() if not n.startswith("classifier")}
    title = ref.config["architectures"][0].replace("ForImageClassification", "Model")
    folder = parity.write_folder(tmp_path, ref._replace(shapes=shapes, config=ref.config | {"architectures": [title]}))
    arrays = {n.removeprefix(prefix): x for n, x in load_file(folder / "model.safetensors").items()}
    save_file(arrays, folder / "model.safetensors")
    family, arguments, model, variables = parity.ours(folder, ref.batch)
    out = parity.run(model, variables, ref.batch)
    assert arguments["classes"] == 0 and out.logits.shape == (2, 32)
    np.testing.assert_allclose(out.embedding, ref.said["embedding"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out.logits, out.embedding)
    config = families[family].config(arguments)
    assert config["architectures"] == [title] and families[family].arguments(config)["classes"] == 0


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2"])
def test_attentions_are_returned_where_they_are_asked_for(name, folder):
    ref = parity.reference(name)
    _, _, model, variables = parity.ours(folder(name), ref.batch, attentions=True)
    out = parity.run(model, variables, ref.batch)
    assert len(parity.probabilities(out)) == 2
    parity.check_outputs(ref, out)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "vit", "hidden_act": "mish"}, "hidden_act='mish': this model supports 'gelu'"),
        ({"model_type": "deit", "image_size": [224, 192]}, r"image_size=\[224, 192\]: this model supports squares"),
        ({"model_type": "dinov2", "use_swiglu_ffn": True}, "use_swiglu_ffn=True: this model supports False"),
        ({"model_type": "resnet", "hidden_act": "gelu"}, "hidden_act='gelu': this model supports 'relu'"),
        (
            {"model_type": "resnet", "layer_type": "wide"},
            "layer_type='wide': this model supports 'basic', 'bottleneck'",
        ),
    ],
)
def test_settings_that_a_network_does_not_have_are_refused(config, said):
    with pytest.raises(ValueError, match=said):
        families[parity.hub_family.family_name(config)].arguments(config)


# Vision transformers


def test_a_transformer_with_the_mean_over_patches_is_ours_alone_and_comes_back():
    vit = families["vit"]
    arguments = {"patch": 4, "width": 8, "depth": 2, "heads": 2, "classes": 5}
    config = json.loads(json.dumps(vit.config(arguments)))
    assert config["model_type"] == "jaxdistill_vit" and parity.hub_family.family_name(config) == "vit"
    again = vit.arguments(config)
    assert again["pool"] == "mean" and again["ffn"] == 32 and again["image"] is None
    assert {name: again[name] for name in arguments} == arguments


@pytest.mark.parametrize(
    ("sizes", "rows", "said"),
    [
        ({"pool": "token"}, (8, 8, 1), r"needs the sizes of the images; set, for example, image=224, channels=3"),
        ({"pool": "token", "image": 8, "channels": 3}, (8, 8, 1), r"images of \[8, 8, 3\], not \[8, 8, 1\]; resize"),
        ({"image": 16}, (8, 8, 1), r"images of \[16, 16, 1\], not \[8, 8, 1\]; resize"),
        ({"heads": 3}, (8, 8, 1), "heads=3 does not divide width=8"),
    ],
)
def test_images_that_do_not_fit_a_transformer_are_refused(sizes, rows, said):
    with pytest.raises(ValueError, match=said):
        model = families["vit"].factory(**{"patch": 4, "width": 8, "depth": 1, "heads": 2, "classes": 5} | sizes)
        model.init(parity.KEY, {"image": np.zeros((1, *rows), np.float32)})


# EfficientNet-Lite


def test_lite0_has_its_published_size():
    model = families["efficientnet_lite"].factory()
    shapes, _ = jax.eval_shape(model.init, parity.KEY, {"image": images(1, 64), "mask": np.ones(1)})
    assert sum(x.size for x in shapes.values()) == 4_652_008
    assert sum(name.endswith("depthwise/kernel") for name in shapes) == 16


@pytest.mark.slow
def test_the_published_weights_say_what_they_say_in_pytorch(tmp_path):
    from experiments.parity.efficientnet import measure  # not part of the source distribution

    error, logits = measure(tmp_path)
    assert error < 1e-4
    assert list(logits.argmax(1)) == [282, 967, 560]  # a tiger cat, an espresso, a helmet


def test_sizes_and_images_that_do_not_fit_are_refused():
    factory = families["efficientnet_lite"].factory
    with pytest.raises(ValueError, match="at least one stage"):
        factory(stages=())
    with pytest.raises(ValueError, match="images have 1 channels, but the model has channels=3"):
        factory(channels=3).init(parity.KEY, {"image": images(1, 32, channels=1), "mask": np.ones(1)})


def test_the_scales_of_dinov2_begin_at_their_argument():
    spec = "dinov2(patch=4, width=8, depth=1, heads=2, classes=5, image=8, channels=1, scale=0.25)"
    params, _ = build_model(spec, "model", "float32").init(
        jax.random.key(0), {"image": jnp.zeros((1, 8, 8, 1)), "mask": jnp.ones(1)}
    )
    for name in ("attention_scale", "mlp_scale"):
        np.testing.assert_array_equal(params[f"blocks/0/{name}"], np.full(8, 0.25))


@pytest.mark.parametrize(("kind", "registers"), [("dinov2", 0), ("dinov2_with_registers", 4)])
def test_a_config_without_a_number_of_registers_has_that_of_transformers(kind, registers):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "patch_size": 4, "image_size": 8}
    config = {"model_type": kind, **sizes}
    assert families[family_name(config)].arguments(config)["registers"] == registers
