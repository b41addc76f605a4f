"""Tests of unstructured pruning: which weights become zero, when, and that they stay zero after every update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from batches import BATCHES

from jaxdistill.compress.added import SQUARE
from jaxdistill.compress.masks import ROLE, finished, zeros
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Variables

KEY = jax.random.key(1)
KERNEL = np.float32([[1, -8, 3], [-6, 2, 9], [5, -4, 7], [0.5, 10, -11]])  # [inputs, outputs]
PARAMS = {ROLE: {"a/kernel": jnp.asarray(KERNEL), "a/bias": jnp.ones(3)}, "terms": {"kernel": jnp.ones((4, 3))}}


def pruned(spec: str, steps: int = 10, inner=None, updates: int = 1, model_state=None):
    """Run some updates with gradients of 1; return the params and the state with the masks."""
    transformation = registry.masks.build(spec, "student.masks").optimizer(inner or optax.sgd(0.0), steps)
    params, state = PARAMS, transformation.init(PARAMS)
    for _ in range(updates):
        grads = jax.tree.map(jnp.ones_like, params)
        updated, state = transformation.update(grads, state, params, model_state=model_state)
        params = optax.apply_updates(params, updated)
    return params, state


def test_the_smallest_weights_of_a_kernel_are_zero_and_nothing_else_is():
    params, state = pruned("sparse(share=0.5, start=0.0, end=0.0)")
    expected = np.where(np.abs(KERNEL) >= 6, KERNEL, 0)  # 6 of the 12 weights stay
    np.testing.assert_array_equal(params[ROLE]["a/kernel"], expected)
    np.testing.assert_array_equal(params[ROLE]["a/bias"], np.ones(3))
    np.testing.assert_array_equal(params["terms"]["kernel"], np.ones((4, 3)))
    assert set(state.kept) == {"a/kernel"} and int(state.updates) == 1
    assert zeros({"kernel": params[ROLE]["a/kernel"], "bias": jnp.zeros(3)}) == 0.5


def test_a_pattern_keeps_the_largest_of_neighbouring_inputs():
    params, _ = pruned("sparse(keep=1, of=2, start=0.0)")
    expected = np.float32([[0, -8, 0], [-6, 0, 9], [5, 0, 0], [0, 10, -11]])
    np.testing.assert_array_equal(params[ROLE]["a/kernel"], expected)


def test_wanda_ranks_by_the_size_of_the_input_in_each_output():
    squares = {ROLE: {f"a/kernel{SQUARE}": jnp.float32([10000, 1, 1, 1])}}  # the first input is a hundred times larger
    params, _ = pruned("sparse(share=0.5, by='wanda', start=0.0, end=0.0)", model_state=squares)
    expected = np.float32([[1, -8, 3], [-6, 0, 0], [0, 0, 0], [0, 10, -11]])  # two weights of each column stay
    np.testing.assert_array_equal(params[ROLE]["a/kernel"], expected)


def test_the_share_rises_as_published_and_pruned_weights_stay_zero_under_an_optimiser_with_momentum():
    spec, counts = "sparse(share=0.75, start=0.2, end=0.6, every=2)", []
    for updates in range(1, 11):
        params, state = pruned(spec, inner=optax.adam(0.1), updates=updates)
        kernel = np.asarray(params[ROLE]["a/kernel"])
        np.testing.assert_array_equal(kernel == 0, ~np.asarray(state.kept["a/kernel"]))
        counts.append(int((kernel == 0).sum()))
    shares = [0.75 * (1 - (1 - t / 4) ** 3) for t in (0, 2, 4)]  # masks are chosen at steps 2, 4 and 6
    expected = [round(12 * share) for share in shares]
    assert counts == [0, 0, *[expected[0]] * 2, *[expected[1]] * 2, *[expected[2]] * 4] and expected == [0, 8, 9]


def test_the_optimiser_sees_no_gradient_of_a_pruned_weight():
    _, state = pruned("sparse(share=0.5, start=0.0, end=0.0)", inner=optax.trace(0.9), updates=3)
    momentum = np.asarray(state.inner.trace[ROLE]["a/kernel"])
    np.testing.assert_array_equal(momentum == 0, np.abs(KERNEL) < 6)


@pytest.mark.parametrize("by", ["magnitude", "wanda"])
def test_each_layer_of_a_stack_is_ranked_by_itself(by):
    stack = np.stack([KERNEL, 100 * KERNEL])  # [layers, inputs, outputs]
    share = registry.masks.build(f"sparse(share=0.5, by='{by}', start=0.0, end=0.0)", "").optimizer(optax.sgd(0.0), 1)
    params = {ROLE: {"blocks/kernel": jnp.asarray(stack)}}
    squares = {ROLE: {f"blocks/kernel{SQUARE}": jnp.ones((2, 4))}}
    _, state = share.update(params, share.init(params), params, model_state=squares)
    kept = np.asarray(state.kept["blocks/kernel"])
    np.testing.assert_array_equal(kept[0], kept[1])
    assert kept.sum() == 12


def test_an_output_of_a_convolution_keeps_weights_of_all_positions():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    share = registry.masks.build("sparse(share=0.9, by='wanda', start=0.0, end=0.0)", "").optimizer(optax.sgd(0.0), 1)
    params = {ROLE: {"stem/kernel": jnp.asarray(kernel)}}
    _, state = share.update(
        params, share.init(params), params, model_state={ROLE: {f"stem/kernel{SQUARE}": jnp.ones(3)}}
    )
    kept = np.asarray(state.kept["stem/kernel"]).reshape(27, 4)
    assert kept.sum(0).tolist() == [3, 3, 3, 3]
    largest = np.argsort(-np.abs(kernel.reshape(27, 4)), axis=0)[:3]
    assert all(kept[largest[:, n], n].all() for n in range(4))


def test_a_group_keeps_at_least_one_weight():
    params, _ = pruned("sparse(share=0.99, start=0.0, end=0.0)")
    assert np.flatnonzero(np.asarray(params[ROLE]["a/kernel"])).size == 1


def test_wanda_without_measured_inputs_is_refused():
    with pytest.raises(ConfigError, match=r"student.masks: by='wanda' knows no inputs of a/kernel"):
        pruned("sparse(share=0.5, by='wanda', start=0.0, end=0.0)")


def test_what_stays_is_updated_as_without_a_mask():
    with_mask, _ = pruned("sparse(share=0.5, start=0.0, end=0.0)", inner=optax.sgd(0.5), updates=3)
    np.testing.assert_allclose(with_mask[ROLE]["a/bias"], np.ones(3) - 1.5)
    kept = np.abs(KERNEL) >= 6
    np.testing.assert_allclose(np.asarray(with_mask[ROLE]["a/kernel"])[kept], (KERNEL - 1.5)[kept])


@pytest.mark.parametrize(
    ("spec", "inputs"),
    [
        ("mlp(widths=(12, 8), classes=5)", "image"),
        ("resnet(widths=(4,), blocks=1, classes=5)", "image"),
        ("bert(vocabulary=13, width=8, depth=1, heads=2, ffn=16, classes=5)", "text"),
        ("decoder(vocabulary=13, width=8, depth=2, heads=2, kv_heads=1, head_size=4, ffn=12)", "tokens"),
    ],
)
def test_wanda_measures_the_inputs_of_every_kernel(spec, inputs):
    pruner = registry.masks.build("sparse(share=0.5, by='wanda')", "student.masks")
    inner = registry.models.build(spec, "model")
    model, rows = pruner.wrap(inner), BATCHES[inputs]()
    params, state = model.init(jax.random.key(0), rows)
    out, after = jax.jit(lambda: model.apply(params, state, rows, train=True, key=jax.random.key(1)))()
    own = {name: x for name, x in state.items() if not name.endswith(SQUARE)}
    plain, _ = jax.jit(lambda: inner.apply(params, own, rows, train=True, key=jax.random.key(1)))()
    np.testing.assert_allclose(out.dense().logits, plain.dense().logits, rtol=1e-5, atol=1e-6)
    squares = {name: x for name, x in after.items() if name.endswith(SQUARE)}
    assert squares and all(x.shape == state[name].shape for name, x in squares.items())
    assert all(bool((x > 0).any()) for x in squares.values()), [n for n, x in squares.items() if not (x > 0).any()]
    if spec.startswith("mlp"):  # rows of padding do not count
        flat = np.asarray(rows["image"]).reshape(8, -1)[np.asarray(rows["mask"]) > 0]
        np.testing.assert_allclose(squares[f"layers/0/kernel{SQUARE}"], (flat**2).mean(0), rtol=1e-5)
        again, _ = jax.jit(lambda: model.apply(params, after, rows, train=False, key=jax.random.key(1)))()
        np.testing.assert_allclose(again.logits, plain.logits, rtol=1e-5, atol=1e-6)
        assert set(finished(Variables(params, after)).state) == set(own)


def test_wanda_measures_no_inputs_of_locked_kernels():
    inner = registry.models.build("mlp(widths=(12, 8), classes=5)", "model")._replace(locked=("layers/0/",))
    model = registry.masks.build("sparse(share=0.5, by='wanda')", "student.masks").wrap(inner)
    _, state = model.init(jax.random.key(0), BATCHES["image"]())
    squares = [name for name in state if name.endswith(SQUARE)]
    assert squares and not any(name.startswith("layers/0/") for name in squares)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("sparse()", "give a share, such as share=0.8, or a pattern"),
        ("sparse(share=0.5, keep=2, of=4)", "give a share, such as share=0.8, or a pattern"),
        ("sparse(share=1.0)", "share=1.0 is not between 0 and 1"),
        ("sparse(share=-0.5)", "share=-0.5 is not between 0 and 1"),
        ("sparse(keep=4, of=4)", "keep=4, of=4: give fewer weights that stay"),
        ("sparse(keep=2)", "keep=2, of=0: give fewer"),
        ("sparse(share=0.5, start=0.6, end=0.5)", "0 <= start <= end <= 1"),
        ("sparse(share=0.5, every=0)", "every=0 is not positive"),
        ("sparse(share=0.5, only='(')", "only='(' is no regular expression"),
        ("sparse(share=0.5, by='random')", "expected one of 'magnitude', 'wanda'"),
    ],
)
def test_a_wrong_argument_is_refused(spec, said):
    with pytest.raises(ConfigError) as error:
        registry.masks.build(spec, "student.masks")
    assert said in str(error.value)


def test_kernels_that_do_not_exist_or_do_not_divide_are_named():
    with pytest.raises(ConfigError, match=r"student.masks: only='head' matches no kernel; there are a/bias, a/kernel"):
        pruned("sparse(share=0.5, only='head')")
    with pytest.raises(ConfigError, match=r"student.masks: a/kernel has 4 inputs, no multiple of 3"):
        pruned("sparse(keep=1, of=3)")


def test_the_share_is_reached_although_it_is_chosen_now_and_then():
    for every in (4, 9):  # masks are chosen at steps 0, 4 and 5, or at 0 and 5
        _, state = pruned(f"sparse(share=0.5, start=0.0, end=0.5, every={every})", updates=6)
        assert int(state.kept["a/kernel"].sum()) == 6


def test_wanda_takes_the_root_of_the_mean_square():
    params = {ROLE: {"kernel": jnp.float32([[1.0], [3.0]])}}
    share = registry.masks.build("sparse(share=0.5, by='wanda', start=0.0, end=0.0)", "").optimizer(optax.sgd(0.0), 1)
    squares = {ROLE: {f"kernel{SQUARE}": jnp.float32([4.0, 1.0])}}  # 1 * 2 < 3 * 1, and 1 * 4 > 3 * 1
    _, state = share.update(params, share.init(params), params, model_state=squares)
    assert np.asarray(state.kept["kernel"]).ravel().tolist() == [False, True]


def test_the_mean_square_runs_over_batches():
    pruner = registry.masks.build("sparse(share=0.5, by='wanda')", "")
    model, rows = pruner.wrap(registry.models.build("mlp(widths=(4,), classes=5)", "model")), BATCHES["image"]()
    params, state = model.init(jax.random.key(0), rows)
    apply = jax.jit(lambda state, rows: model.apply(params, state, rows, train=True, key=jax.random.key(1))[1])
    first = apply(state, rows)
    second = apply(first, {**rows, "image": 3 * rows["image"]})
    name = f"layers/0/kernel{SQUARE}"
    np.testing.assert_allclose(second[name], (0.99 + 0.01 * 9) * first[name], rtol=1e-5)


def test_an_input_that_is_always_zero_does_not_restart_the_mean_square_of_the_others():
    pruner = registry.masks.build("sparse(share=0.5, by='wanda')", "")
    model, rows = pruner.wrap(registry.models.build("mlp(widths=(4,), classes=5)", "model")), BATCHES["image"]()
    image = rows["image"].at[:, 0, 0].set(0)
    params, state = model.init(jax.random.key(0), rows)
    apply = jax.jit(lambda state, image: model.apply(params, state, {**rows, "image": image}, train=True, key=KEY)[1])
    first = apply(state, image)
    second = apply(first, 3 * image)
    name = f"layers/0/kernel{SQUARE}"
    assert first[name][0] == 0 and (first[name][1:] > 0).all()
    np.testing.assert_allclose(second[name], (0.99 + 0.01 * 9) * first[name], rtol=1e-5)
