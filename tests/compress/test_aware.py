"""Tests of quantisation-aware training: models compute with rounded values, and gradients pass the rounding."""

import functools

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_same
from examples import MODELS, every
from flax import nnx
from networks import KEY, batch, built

import jaxdistill.compress.aware  # noqa: F401  (registers `aware`)
from jaxdistill.compress.products import Role, weight_roles
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Pretrained
from jaxdistill.core.types import Outputs, Variables
from jaxdistill.models.combinators import in_dtype, microbatched
from jaxdistill.models.layers import pixels
from jaxdistill.models.nnx import from_nnx

FIRST = {name: table[:1] for name, table in MODELS.items()}
DECODER = "decoder(vocabulary=10, width=16, depth=3, heads=4, kv_heads=2, head_size=8, ffn=32{})"


def aware(spec: str, model, calls: int = 0):
    quantizer = registry.quantizers.build(spec, "student.quantized")
    return quantizer, quantizer.wrap(model, calls)


def rows_of(example):
    return batch(example.inputs)


def loss_of(model, variables, rows, train=False):
    out, state = model.apply(*variables, rows, train=train, key=KEY)
    logits = out.dense().logits
    kept = jnp.where(jnp.abs(logits) < 1e6, logits, 0)  # rows that are not compared have logits of -1e9
    return (kept * jnp.sin(jnp.arange(kept.size)).reshape(kept.shape)).sum(), (kept, state)


def levels(x: np.ndarray, role: Role) -> int:
    """Return the greatest number of different magnitudes in the weights of one output."""
    columns = np.moveaxis(x, role.axes, range(-len(role.axes), 0)).reshape(-1, np.prod([x.shape[a] for a in role.axes]))
    return max(len(np.unique(np.abs(row))) for row in columns)


@every(FIRST)
@pytest.mark.parametrize(
    ("bits", "most"), [pytest.param(8, 128, marks=pytest.mark.slow), (4, 8), pytest.param(2, 2, marks=pytest.mark.slow)]
)
def test_finished_weights_are_on_the_grid_and_give_the_same_outputs(example, bits, most):
    model, params, state = built(example.spec)
    quantizer, wrapped = aware(f"aware(weights={bits}, inputs=0)", model)
    finished, ranges = quantizer.finish(model, Variables(params, state), rows_of(example))
    roles = weight_roles(model, params, state, rows_of(example))
    for name, x in finished.params.items():
        if name not in roles:
            assert_same({"x": x}, {"x": params[name]})
            continue
        assert levels(np.asarray(x), roles[name]) <= most, name
        # Some outputs have only two inputs, and the larger weight is on the grid already.
        assert (np.asarray(x) != np.asarray(params[name])).mean() >= 0.5
    assert ranges == {}
    forward = lambda model: jax.jit(lambda v: loss_of(model, v, rows_of(example))[1][0])
    rounded, floats = forward(wrapped)(Variables(params, state)), forward(model)
    np.testing.assert_allclose(rounded, floats(finished), rtol=1e-5, atol=1e-6)
    assert np.abs(rounded - floats(Variables(params, state))).max() > 0


@every(FIRST)
def test_the_gradient_is_that_at_the_rounded_weights(example):
    model, params, state = built(example.spec)
    quantizer, wrapped = aware("aware(weights=4, inputs=0)", model)
    finished, _ = quantizer.finish(model, Variables(params, state), rows_of(example))
    gradient = lambda model: jax.jit(jax.grad(lambda p: loss_of(model, (p, state), rows_of(example), True)[0]))
    found, expected = gradient(wrapped)(params), gradient(model)(finished.params)
    largest = max(float(np.abs(x).max()) for x in expected.values())
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-4, atol=1e-5 * largest, err_msg=name)


def test_products_of_rounded_rows_and_weights_by_hand():
    model, params, state = built("mlp(widths=(12, 8), classes=5)")
    _, wrapped = aware("aware(weights=4, inputs=8)", model)
    rows = batch("image")
    found, _ = loss_of(wrapped, (params, state), rows)[1]
    x = np.float64(pixels(rows["image"], jnp.float32)).reshape(len(rows["mask"]), -1)
    p = {name: np.float64(value) for name, value in params.items()}
    for layer in ("layers/0", "layers/1", "head"):
        w, step = p[f"{layer}/kernel"], np.abs(p[f"{layer}/kernel"]).max(0) / 7
        scale = np.abs(x).max(1, keepdims=True) / 127
        x = (np.round(x / scale) * scale) @ (np.round(w / step) * step) + p[f"{layer}/bias"]
        x = np.maximum(x, 0) if layer != "head" else x
    np.testing.assert_allclose(found, x, atol=1e-5)


@pytest.mark.parametrize("options", [", remat='full'", ", scan_layers=False", ", tied=False"])
def test_stacked_and_rematerialised_layers_are_rounded_alike(options):
    rows, plain = batches.tokens(rows=4, classes=10), registry.models.build(DECODER.format(""), "")
    other = registry.models.build(DECODER.format(options), "")
    spec = "aware(weights=4, ranges='running')"
    values = Variables(*jax.jit(other.init)(KEY, rows))
    (_, wrapped), (_, rounded) = aware(spec, plain), aware(spec, other)
    given = jax.jit(rounded.init)(KEY, rows)
    found, (logits, after) = loss_of(rounded, given, rows, train=True)
    ranges = {name: np.asarray(x) for name, x in after.items() if name.endswith("/input_range")}
    assert all((x[..., 0] <= 0).all() and (x[..., 1] > 0).all() for x in ranges.values()) and len(ranges) > 6
    assert np.isfinite(logits).all() and set(after) == set(given[1])
    if "tied" in options:  # the model returns its head as a factor of the logits and does not multiply by it
        assert np.asarray(after["head/kernel/input_range"])[1] > 0
        assert np.abs(logits - loss_of(other, values, rows, train=True)[1][0]).max() > 1e-3
        return
    stack = lambda name: np.stack([np.asarray(values.params[name.replace("blocks", f"blocks/{n}")]) for n in range(3)])
    params = (
        values.params
        if "remat" in options
        else {
            name: stack(name) if name.startswith("blocks") else values.params[name]
            for name in jax.eval_shape(plain.init, KEY, rows)[0]
        }
    )
    state = jax.jit(wrapped.init)(KEY, rows)[1]
    expected, (same_logits, same_after) = loss_of(wrapped, (params, state), rows, train=True)
    np.testing.assert_allclose(logits, same_logits, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(float(found), float(expected), rtol=1e-3, atol=1e-4)
    span = np.asarray(same_after["blocks/up/kernel/input_range"])
    assert span.shape == (3, 2) and (span[:, 0] < 0).all() and len(np.unique(span)) == 6


def test_the_first_steps_are_in_floats_and_microbatches_count_as_calls():
    model, _, state = built("mlp(widths=(12, 8), classes=5)")
    rows = batch("image")
    for microbatches in (1, 2):
        _, wrapped = aware("aware(weights=2, start=0.5)", model, calls=4 * microbatches)
        run = microbatched(wrapped, microbatches) if microbatches > 1 else wrapped
        values, outputs = jax.jit(run.init)(KEY, rows), []
        for _ in range(4):
            out, counted = run.apply(*values, rows, train=True, key=KEY)
            outputs.append(np.asarray(out.logits))
            values = values[0], counted
        floats = model.apply(values[0], state, rows, train=True, key=KEY)[0].logits
        np.testing.assert_allclose(outputs[0], floats, atol=1e-6)
        np.testing.assert_array_equal(outputs[1], outputs[0])
        assert np.abs(outputs[2] - outputs[1]).max() > 0.01
        np.testing.assert_array_equal(outputs[3], outputs[2])
        evaluated = run.apply(*values, rows, train=False, key=KEY)
        np.testing.assert_allclose(evaluated[0].logits, outputs[3], atol=1e-5)
        assert int(evaluated[1]["quantize/calls"]) == 4 * microbatches


def test_running_ranges_are_moving_averages_that_evaluation_reads():
    model = registry.models.build("mlp(widths=(12,), classes=5)", "")
    _, wrapped = aware("aware(weights=0, ranges='running')", model)
    params, state = jax.jit(wrapped.init)(KEY, batch("image"))
    name, low, high = "layers/0/kernel/input_range", 0.0, 0.0
    for number, brightest in enumerate((100, 255, 180)):
        image = np.full((8, 8, 8, 1), brightest, np.uint8)
        image[0, 0, 0] = 0
        rows = {**batch("image"), "image": image}
        _, unchanged = wrapped.apply(params, state, rows, train=False, key=KEY)
        assert_same(unchanged, state) if number else None
        _, state = wrapped.apply(params, state, rows, train=True, key=KEY)
        ends = (-1.0, max(brightest / 127.5 - 1, 0))
        share = 0.01 if number else 1.0
        low, high = low + share * (ends[0] - low), high + share * (ends[1] - high)
        np.testing.assert_allclose(state[name], [low, high], rtol=1e-5, atol=1e-6)


def test_a_learned_scale_has_the_gradient_of_lsq():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    model = from_nnx(lambda rngs, batch: Linear(20, 3, rngs=rngs))
    _, wrapped = aware("aware(weights=4, inputs=0, scales='learned')", model)
    rows = {"x": np.eye(20, dtype=np.float32), "mask": np.ones(20, np.float32)}
    params, state = wrapped.init(KEY, rows)
    factor = np.log(np.asarray([0.5, 0.9, 1.3], np.float32))  # the first two clip some weights
    params = {**params, "layer/kernel": x, "layer/kernel/log_scale": factor}
    total = lambda params: (wrapped.apply(params, state, rows, train=True, key=KEY)[0].logits * WEIGHTS).sum()
    found = jax.grad(total)(params)
    step = np.abs(x).max(0) / 7 * np.exp(factor)
    v = x / step
    inside = (v > -7) & (v < 7)
    by_step = np.where(inside, np.round(v) - v, np.clip(v, -7, 7))  # equation 3 of the paper
    damping = 1 / np.sqrt(20 * 7)
    expected = (WEIGHTS * by_step).sum(0) * damping * step  # `step` is the derivative of the step by `log_scale`
    np.testing.assert_allclose(found["layer/kernel/log_scale"], expected, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(found["layer/kernel"], np.where(inside, WEIGHTS, 0), atol=1e-6)
    assert not inside[:, :2].all(0).any() and inside[:, 2].all()


WEIGHTS = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)


class Linear(nnx.Module):
    """A user's module: one linear layer."""

    def __init__(self, inputs, outputs, *, rngs):
        self.layer = nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)

    def __call__(self, batch, *, train, key):
        return Outputs(self.layer(batch["x"]))


def test_a_row_of_zeros_with_a_learned_scale_stays_zero_and_finite():
    model, params, state = built("bert(vocabulary=13, width=8, depth=2, heads=2, ffn=16, classes=5)")
    _, wrapped = aware("aware(weights=4, scales='learned')", model)
    padded = {**params, "embed/token/embedding": params["embed/token/embedding"].at[0].set(0.0)}
    start = {**wrapped.init(KEY, batch("text"))[0], **padded}
    gradients = jax.grad(lambda p: loss_of(wrapped, (p, state), batch("text"))[0])(start)
    assert all(np.isfinite(x).all() for x in gradients.values())
    assert np.asarray(gradients["embed/token/embedding/log_scale"])[0] == 0


def test_a_pretrained_model_is_loaded_without_what_a_quantizer_adds():
    model, params, state = built("mlp(widths=(12, 8), classes=5)")
    asked = []

    def load(shapes):
        asked.append(shapes)
        return Pretrained((), lambda: Variables(params, state))

    wrapped = aware("aware(scales='learned', ranges='running')", model._replace(load=load))[1]
    shapes = Variables(*jax.eval_shape(wrapped.init, KEY, batch("image")))
    assert len(shapes.params) > len(params) and len(shapes.state) == 4
    assert wrapped.load(shapes).read().params is params
    assert asked[0].params.keys() == params.keys() and asked[0].state == {}


def test_a_model_in_which_nothing_can_be_rounded_is_refused():
    model, *_ = built("mlp(widths=(12, 8), classes=5)")
    for options, said in (
        ("skip='haed'", "skip='haed' matches no weight; there are"),
        ("skip='kernel'", "no weight is rounded"),
        ("block=32", "layers/1/kernel has 12 inputs for an output, no multiple of 32"),
    ):
        with pytest.raises(ConfigError, match=f"student.quantized: {said}"):
            aware(f"aware({options})", model)[1].init(KEY, batch("image"))


def test_weights_that_are_left_out_stay_floats_with_their_inputs():
    model, params, state = built("mlp(widths=(12, 8), classes=5)")
    quantizer, _ = aware("aware(weights=4, skip='head|layers/0')", model)
    finished, _ = quantizer.finish(model, Variables(params, state), batch("image"))
    changed = {name for name, x in finished.params.items() if (np.asarray(x) != np.asarray(params[name])).any()}
    assert changed == {"layers/1/kernel"} and "skip='head|layers/0'" in quantizer.serving


def test_a_model_in_bfloat16_is_rounded_before_its_cast():
    model = registry.models.build("mlp(widths=(12, 8), classes=5)", "")
    _, wrapped = aware("aware(weights=4)", in_dtype(model, "bfloat16"))
    values = wrapped.init(KEY, batch("image"))
    apply = lambda model: jax.jit(functools.partial(model.apply, train=False))
    found = apply(wrapped)(*values, batch("image"), key=KEY)[0].logits
    exact, floats = aware("aware(weights=4)", model)[1], in_dtype(model, "bfloat16")
    expected = np.asarray(apply(exact)(*values, batch("image"), key=KEY)[0].logits)
    plain = np.asarray(apply(floats)(values[0], {}, batch("image"), key=KEY)[0].logits, np.float32)
    assert found.dtype == jnp.bfloat16
    distance = lambda x: np.abs(np.asarray(x, np.float32) - expected).max()
    assert distance(found) < distance(plain) / 3  # weights are rounded though the model casts them


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("aware(weights=3)", "student.quantized: aware(weights=3): expected one of 0, 2, 4, 8."),
        ("aware(weights=2, block=32)", "there is no grid for weights=2 with block=32. Known: weights=8,"),
        ("aware(weights=0, inputs=0)", "rounds nothing"),
        ("aware(weights=0, block=32)", "weights=0 are not rounded; leave block and scales out"),
        ("aware(inputs=0, ranges='running')", "inputs=0 are not rounded; leave ranges out"),
        ("aware(bits=4)", "The bits are those of weights=4 and inputs=8."),
        ("aware(start=1.0)", "start=1.0 is not in [0, 1)"),
        ("aware(scales='learned', block=32)", "needs block=0"),
        ("aware(skip='(')", "no regular expression"),
    ],
)
def test_what_is_not_offered_is_named(spec, said):
    with pytest.raises(ConfigError) as error:
        registry.quantizers.build(spec, "student.quantized")
    assert said in str(error.value)
