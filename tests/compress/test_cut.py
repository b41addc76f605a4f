"""Tests of structured pruning: units leave every array, and units that nothing reads leave outputs unchanged."""

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdistill.models  # noqa: F401  (registers the families)
from jaxdistill.compress.axes import CUTTABLE, array_axes
from jaxdistill.compress.cut import Choice, choose, cut, sizes_after, sliced
from jaxdistill.compress.products import forward
from jaxdistill.compress.unit_scores import unit_scores
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.marked_arrays import NOTHING
from jaxdistill.core.spec import Spec
from jaxdistill.core.types import Variables
from jaxdistill.evaluation.flops import flops
from jaxdistill.export import hugging_face
from jaxdistill.models.hub.family import families
from jaxdistill.run.cut_specs import architecture

KEY = jax.random.key(0)
DECODER = "decoder(vocabulary=5, width=8, depth=3, heads=4, kv_heads={kv}, head_size=4, ffn=12{more})"
SPECS = {
    "bert": "bert(vocabulary=13, width=8, depth=3, heads=4, ffn=12, classes=5)",
    "embedder": "bert(vocabulary=13, width=8, depth=3, heads=4, ffn=12, classes=0)",
    "vit": "vit(patch=4, width=8, depth=3, heads=4, classes=5)",
    "deit": "deit(patch=4, width=8, depth=3, heads=4, classes=5, image=8, channels=1)",
    "stacked": DECODER.format(kv=2, more=""),
    "decoder": DECODER.format(kv=4, more=", scan_layers=False, qk_norm=True, tied=False"),
    "mlp": "mlp(widths=(12, 8), classes=5)",
    "resnet": "resnet(widths=(4, 8), blocks=2, classes=5)",
}
INPUTS = {"bert": "text", "embedder": "text", "stacked": "tokens", "decoder": "tokens"}
RESIDUAL = ("vit", "deit", "stacked", "decoder")  # norms come before each layer, so a layer of zeros adds nothing


def world(name: str):
    model, rows = registry.models.build(SPECS[name], ""), batches.BATCHES[INPUTS.get(name, "image")](rows=8, classes=5)
    shapes = Variables(*jax.eval_shape(model.init, KEY, rows))
    form = architecture(SPECS[name])
    return model, batches.drawn(shapes, 1), rows, form, CUTTABLE[form.family]


def logits(model, variables, rows):
    out = jax.jit(lambda v, rows: model.apply(*v, rows, train=False, key=KEY)[0].dense().logits)(variables, rows)
    return np.asarray(out)


def take(form, variables, shapes, choice, before) -> Variables:
    """Slice variables as a run does, in one program."""
    cut_out = lambda v: sliced(form.family, form.arguments, v, shapes, choice, before.head_size, before.groups)
    return jax.device_get(jax.jit(cut_out)(variables))


def smaller(name: str, wanted: dict):
    """Cut a model so that the last units of each axis stay; return it with its variables and the choice of units."""
    _, variables, rows, form, table = world(name)
    how, before = cut(teacher="big", **wanted), table.sizes(form.arguments)
    after = sizes_after(how, form.family, form.arguments)
    scores = {axis: np.arange(size) for axis, size in before.units.items()} | {"layers": np.arange(before.layers)}
    choice = choose(how, before, after, scores)
    model = registry.models.build(Spec(form.family, (), table.arguments(form.arguments, after)), "")
    shapes = Variables(*jax.eval_shape(model.init, KEY, rows))
    found = take(form, variables, shapes, choice, before)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(lambda x: x.shape, shapes)
    return model, found, choice


def without_readers(name: str, choice: Choice) -> Variables:
    """Return the variables of the whole model, except that nothing reads the units that a choice removes."""
    _, variables, _, form, table = world(name)
    sizes = table.sizes(form.arguments)
    params = {n: np.array(x) for n, x in variables.params.items()}
    for array, x in params.items():
        axes = array_axes(table, form.arguments, array)
        if axes is None or x.ndim < 2 or len(axes.names) < 2:
            continue
        for layer in range(len(x)) if axes.stacked else (None,):
            part = x if layer is None else x[layer]
            axis = (axes.names if layer is None else axes.of_layer(layer))[-2]
            if axis in choice.units:
                size = part.shape[-2] // sizes.units[axis]
                gone = [n for n in range(part.shape[-2]) if n // size not in choice.units[axis]]
                part[..., gone, :] = 0
    return variables._replace(params=params)


UNITS = [(name, what) for name in SPECS for what in ("neurons", "heads") if name not in ("mlp", "resnet")]


@pytest.mark.parametrize(("name", "what"), [*UNITS, ("mlp", "neurons"), ("resnet", "channels")])
def test_units_that_nothing_reads_can_be_removed(name, what):
    model, variables, rows, *_ = world(name)
    little, found, choice = smaller(name, {what: 0.5})
    assert choice.units and all(len(ids) > 1 or what == "heads" for ids in choice.units.values())
    whole = logits(model, without_readers(name, choice), rows)
    np.testing.assert_allclose(logits(little, found, rows), whole, rtol=2e-5, atol=2e-5)
    assert np.abs(whole - logits(model, variables, rows)).max() > 1e-3  # else the test would show nothing


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_layer_that_adds_nothing_can_be_removed(name):
    model, variables, rows, form, table = world(name)
    params = {n: np.array(x) for n, x in variables.params.items()}
    for array, x in params.items():
        if "blocks" in array and ("/out/" in array or "/down/" in array):
            stacked = array_axes(table, form.arguments, array).stacked
            x[1 if stacked else slice(None)] *= 0 if stacked or "blocks/1/" in array else 1
    variables = variables._replace(params=params)
    how, before = cut(teacher="big", layers=(0, 2)), table.sizes(form.arguments)
    after = sizes_after(how, form.family, form.arguments)
    choice = choose(how, before, after, {})
    little = registry.models.build(Spec(form.family, (), table.arguments(form.arguments, after)), "")
    shapes = Variables(*jax.eval_shape(little.init, KEY, rows))
    found = take(form, variables, shapes, choice, before)
    np.testing.assert_allclose(logits(little, found, rows), logits(model, variables, rows), rtol=2e-5, atol=2e-5)
    scores = unit_scores(model, variables, [rows], table, form.arguments)
    assert scores["layers"][1] < 1e-6 < scores["layers"][[0, 2]].min()  # block influence finds this layer


def test_width_is_removed_from_every_array():
    little, found, choice = smaller("bert", {"width": 6, "layers": 2})
    _, variables, *_ = world("bert")
    assert choice == Choice((1, 2), {"width": (2, 3, 4, 5, 6, 7)})
    old = variables.params
    np.testing.assert_array_equal(found.params["blocks/1/up/kernel"], old["blocks/2/up/kernel"][2:])
    np.testing.assert_array_equal(
        found.params["blocks/0/attention/out/kernel"], old["blocks/1/attention/out/kernel"][:, 2:]
    )
    np.testing.assert_array_equal(found.params["embed/token/embedding"], old["embed/token/embedding"][:, 2:])
    np.testing.assert_array_equal(found.params["head/dense/kernel"], old["head/dense/kernel"][2:, 2:])
    assert np.isfinite(logits(little, found, batches.BATCHES["text"](rows=8, classes=5))).all()


def test_neurons_and_layers_are_scored_by_hand():
    model, variables, rows, form, table = world("mlp")
    scores = unit_scores(model, variables, [rows, rows], table, form.arguments)
    hidden = model.apply(*variables, rows, train=False, key=KEY)[0].hidden_states
    real = np.asarray(rows["mask"]) != 0
    assert set(scores) == {"ffn/0", "ffn/1"} and not real.all()
    for number, state in enumerate(hidden):
        np.testing.assert_allclose(scores[f"ffn/{number}"], np.abs(state)[real].mean(0), rtol=1e-5)
    model, variables, rows, form, table = world("bert")
    scores = unit_scores(model, variables, [rows], table, form.arguments)
    states = [np.float64(x) for x in model.apply(*variables, rows, train=False, key=KEY)[0].hidden_states]
    real = np.asarray(rows["attention_mask"] * (rows["mask"] != 0)[:, None]) != 0
    for number in range(3):
        a, b = states[number][real], states[number + 1][real]
        cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        np.testing.assert_allclose(scores["layers"][number], (1 - cosines).mean(), rtol=1e-4)


def test_heads_and_width_are_scored_by_hand():
    model, variables, rows, form, table = world("bert")
    variables, rows = jax.tree.map(jnp.asarray, (variables, rows))
    scores = unit_scores(model, variables, [rows], table, form.arguments)

    def keep(weight, x, summed, collected):
        collected.add(weight.name, x)
        return x

    collected = forward(model, *variables, rows, train=False, key=KEY, ranges={}, round_inputs=keep, combine=NOTHING)[1]
    inputs = {name: np.float64(x) for name, x in collected.items()}
    real = np.asarray(rows["attention_mask"] * (rows["mask"] != 0)[:, None]) != 0
    split = inputs["blocks/1/attention/out/kernel"][real].reshape(real.sum(), 4, 2)
    np.testing.assert_allclose(scores["heads/1"], np.linalg.norm(split, axis=-1).mean(0), rtol=1e-4)
    readers = [
        f"blocks/{n}/{part}/kernel"
        for n in range(3)
        for part in ("attention/query", "attention/key", "attention/value", "up")
    ]
    expected = sum(np.abs(inputs[name][real]).mean(0) for name in readers)
    tokens = real.sum(1)[:, None]  # the pooled input of the head counts once for each token of its text
    expected = expected + sum(
        (np.abs(inputs[f"head/{name}/kernel"]) * tokens).sum(0) / real.sum() for name in ("dense", "out")
    )
    np.testing.assert_allclose(scores["width"], expected, rtol=1e-4)


def test_heads_are_scored_by_the_size_of_their_outputs():
    model, variables, rows, form, table = world("bert")
    scores = unit_scores(model, variables, [rows], table, form.arguments)
    params = {n: np.array(x) for n, x in variables.params.items()}
    params["blocks/1/attention/value/kernel"][:, 2:4] *= 7
    params["blocks/1/attention/value/bias"][2:4] *= 7
    louder = unit_scores(model, variables._replace(params=params), [rows], table, form.arguments)
    np.testing.assert_allclose(louder["heads/1"] / scores["heads/1"], [1, 7, 1, 1], rtol=1e-4)
    np.testing.assert_allclose(louder["heads/0"], scores["heads/0"], rtol=1e-6)


@pytest.mark.parametrize("name", ["bert", "stacked", "resnet", "vit"])
def test_padding_and_rows_that_do_not_count_have_no_say(name):
    model, variables, rows, form, table = world(name)
    scores = unit_scores(model, variables, [rows], table, form.arguments)
    other = {n: np.array(x) for n, x in rows.items()}
    gone = other["mask"] == 0
    field = "input_ids" if "input_ids" in other else "image"
    if name == "stacked":  # causal: tokens that count attend to all earlier ones, so only the last tokens are unseen
        gone = np.flip(np.cumprod(np.flip(gone, 1), 1), 1).astype(bool)
    assert gone.any()
    other[field][gone] = 3 if field == "input_ids" else 255 - other[field][gone]
    again = unit_scores(model, variables, [other], table, form.arguments)
    for axis, x in scores.items():
        np.testing.assert_allclose(again[axis], x, rtol=1e-4, atol=1e-6, err_msg=axis)
    sizes = table.sizes(form.arguments)
    measured = {axis: size for axis, size in sizes.units.items() if axis != "vocabulary"}  # tokens are not scored
    assert {axis: len(x) for axis, x in scores.items() if axis != "layers"} == measured


def test_a_small_share_keeps_one_unit():
    form = architecture(SPECS["mlp"])
    assert set(sizes_after(cut(teacher="big", neurons=0.01), form.family, form.arguments).units.values()) == {1}


def test_the_largest_scores_stay_and_of_equal_ones_the_first():
    _, _, _, form, table = world("mlp")
    how, before = cut(teacher="big", neurons=3), table.sizes(form.arguments)
    scores = {"ffn/0": np.array([0, 5, 1, 5, 5, 5, 0, 0, 0, 0, 0, 0]), "ffn/1": np.array([3, 1, 2, 1, 1, 1, 1, 1])}
    choice = choose(how, before, sizes_after(how, form.family, form.arguments), scores)
    assert choice.units == {"ffn/0": (1, 3, 4), "ffn/1": (0, 1, 2)}


@pytest.mark.parametrize(
    ("name", "wanted"), [("vit", {"neurons": 0.5, "heads": 2, "layers": 2}), ("resnet", {"channels": 0.5})]
)
def test_parameters_and_flops_fall_as_computed(name, wanted):
    model, variables, rows, *_ = world(name)
    little, found, _ = smaller(name, wanted)
    count = lambda v: sum(x.size for x in jax.tree.leaves(v.params))
    forward = lambda model: lambda v, rows: model.apply(*v, rows, train=False, key=KEY)[0].logits
    work = lambda model, v: flops(jax.make_jaxpr(forward(model))(v, rows)).total
    lost = count(variables) - count(found)
    if name == "vit":  # a block: norms 32, attention 4 * (64 + 8), perceptron 2 * 8 * 32 + 40
        block, half = 32 + 288 + 552, 32 + 4 * 32 + 3 * 4 + 8 + 2 * 8 * 16 + 24
        assert lost == 3 * block - 2 * half
    else:  # each block loses half of what its first convolution writes
        inner = lambda inputs, outputs: 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs
        halved = lambda inputs, outputs: 9 * inputs * outputs // 2 + outputs + 9 * outputs * outputs // 2
        shapes = [(4, 4), (4, 4), (4, 8), (8, 8)]
        assert lost == sum(inner(*each) - halved(*each) for each in shapes)
    assert work(little, found) < 0.6 * work(model, variables)


@pytest.mark.parametrize("name", ["bert", "vit", "deit", "stacked"])
def test_heads_of_another_size_keep_the_layout_of_hugging_face(name):
    _, found, _ = smaller(name, {"heads": 0.5, "width": 6})
    form = architecture(SPECS[name])
    arguments = CUTTABLE[form.family].arguments(
        form.arguments, sizes_after(cut(teacher="big", heads=0.5, width=6), form.family, form.arguments)
    )
    config = families[form.family].config(arguments)
    again = families[form.family].arguments(config)
    assert {name: again[name] for name in ("heads", "width")} == {"heads": 2, "width": 6}
    assert hugging_face.in_transformers(form.family, arguments) == (name == "stacked")
    assert again["head_size"] == (4 if name == "stacked" else 2)
    assert len(hugging_face.weights(form.family, arguments, found)) >= len(found.params) > 0


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cut()", "give the name of a teacher"),
        ("cut(teacher='a', source='b')", "give the name of a teacher"),
        ("cut(teacher='a', heads=0.0)", "heads=0.0: give a number above 0"),
        ("cut(teacher='a', layers=1.5)", "layers=1.5: give a number above 0, or a share of at most 1.0"),
        ("cut(teacher='a', records=0)", "records=0"),
        ("cut(teacher='a', heads='many')", "expected int | float"),
    ],
)
def test_a_wrong_cut_is_named(spec, said):
    with pytest.raises(ConfigError) as error:
        registry.cuts.build(spec, "student.model")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "wanted", "said"),
    [
        ("resnet", {"heads": 2}, "a resnet has no heads"),
        ("mlp", {"layers": 1}, "a mlp has no layers that can be removed"),
        ("bert", {"layers": 4}, "layers=4: the model has 3; give at most 3"),
        ("bert", {"layers": (2, 1)}, "must be rising numbers from 0 to 2"),
        ("bert", {"layers": (-1, 1)}, "must be rising numbers from 0 to 2"),
        ("bert", {"neurons": 13}, "neurons=13: the model has 12; give at most 12"),
        ("bert", {"channels": 0.5}, "a bert has no channels"),
    ],
)
def test_what_a_model_does_not_have_cannot_be_cut(name, wanted, said):
    form = architecture(SPECS[name])
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        sizes_after(cut(teacher="big", **wanted), form.family, form.arguments)


def test_a_family_without_named_axes_is_refused():
    with pytest.raises(ValueError, match="models of the family 'clip' cannot be cut; these can: decoder"):
        sizes_after(cut(teacher="big"), "clip", {})


def test_a_smaller_model_has_no_units_of_the_layers_that_it_lost():
    form = architecture(SPECS["bert"])
    after = sizes_after(cut(teacher="big", layers=2), form.family, form.arguments)
    assert after.layers == 2
    assert {name for name in after.units if name.startswith("ffn")} == {"ffn/0", "ffn/1"}
    assert {name for name in after.units if name.startswith("heads")} == {"heads/0", "heads/1"}
