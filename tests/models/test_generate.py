"""Tests of text generation: cached steps, prompts of uneven lengths, sampling distributions, and stop tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_same
from golden.weights import tokens

from jaxdistill.core import registry
from jaxdistill.models.combinators import in_dtype
from jaxdistill.models.generate import empty_cache, generate, sample_tokens

KEY = jax.random.key(0)
TINY = "decoder(vocabulary=64, width=32, depth=2, heads=4, kv_heads=2, head_size=8, ffn=48"


@functools.cache
def built(options: str = ""):
    model = registry.models.build(f"{TINY}{options})" if not options.startswith("gpt2") else options, "model")
    params, _ = jax.jit(model.init)(KEY, {"input_ids": tokens(2, 6, 64)})
    return model, params


def logits(model, params, ids):
    apply = lambda params, ids: model.apply(params, {}, {"input_ids": ids}, train=False, key=KEY)[0].dense().logits
    return jax.jit(apply)(params, ids)


GPT2 = "gpt2(vocabulary=64, width=32, depth=2, heads=4, positions=32)"


@pytest.mark.sampled("*qk_norm*", "*window*", "gpt2*")
@pytest.mark.parametrize(
    "options", [", qkv_bias=True", ", scan_layers=False, qk_norm=True, tied=False", ", window=4", GPT2]
)
def test_cached_steps_give_the_logits_of_the_whole_text(options):
    model, params = built(options)
    ids = tokens(3, 9, 64)
    slots = jnp.broadcast_to(jnp.arange(12), (3, 12))

    @jax.jit
    def read(cache, ids, positions):
        batch = {"input_ids": ids, "positions": positions, "slots": slots}
        out, cache = model.apply(params, cache, batch, train=False, key=KEY)
        return out.dense().logits, cache

    place = lambda first, last: jnp.broadcast_to(jnp.arange(first, last), (3, last - first))
    first, cache = read(empty_cache(model, slots), ids[:, :5], place(0, 5))
    said = [first]
    for n in range(5, 9):
        here, cache = read(cache, ids[:, n : n + 1], place(n, n + 1))
        said.append(here)
    assert_close(jnp.concatenate(said, axis=1), logits(model, params, ids), rtol=1e-5, atol=1e-5)


def by_hand(model, params, prompt, steps: int) -> list[int]:
    """Return the most likely tokens, decoded without a cache; zeros behind the text do not matter to a causal model."""
    text = np.zeros((1, len(prompt) + steps), np.int32)
    text[0, : len(prompt)] = prompt
    whole = jax.jit(lambda text: logits(model, params, text))
    for end in range(len(prompt), len(prompt) + steps):
        text[0, end] = whole(text)[0, end - 1].argmax()
    return text[0, len(prompt) :].tolist()


@pytest.mark.sampled("left")
@pytest.mark.parametrize("padding", ["left", "right"])
def test_prompts_of_uneven_lengths_go_on_as_each_would_alone_in_one_program(padding):
    model, params = built()
    texts = [tokens(1, n, 64, seed=n)[0] for n in (5, 2, 4)]
    pad = lambda x: (5 - len(x), 0) if padding == "left" else (0, 5 - len(x))
    prompts = np.stack([np.pad(x, pad(x), constant_values=7) for x in texts])
    compiled = jax.jit(functools.partial(generate, model, steps=4, temperature=0.0, padding=padding))
    found = compiled(params, prompts, np.array([5, 2, 4]), KEY)
    assert found.tokens.tolist() == [by_hand(model, params, x, 4) for x in texts]
    assert found.lengths.tolist() == [4, 4, 4]
    compiled(params, prompts, np.array([1, 3, 5]), KEY)
    assert compiled._cache_size() == 1


def test_a_stop_token_ends_its_row_and_the_others_go_on():
    model, params = built()
    prompts = tokens(2, 3, 64)
    run = lambda **settings: jax.jit(functools.partial(generate, model, steps=6, temperature=0.0, **settings))(
        params, prompts, np.array([3, 3]), KEY
    )
    free = run()
    stop = int(free.tokens[0, 2])
    first = free.tokens[0].tolist().index(stop) + 1
    found = run(stop=(stop, 63))
    assert found.lengths[0] == first and found.tokens[0].tolist() == free.tokens[0, :first].tolist() + [0] * (6 - first)
    other = free.tokens[1].tolist()
    until = other.index(stop) + 1 if stop in other else 6
    assert found.lengths[1] == until and found.tokens[1, :until].tolist() == other[:until]


def test_draws_differ_by_key_and_row_and_repeat_themselves():
    model, params = built()
    prompts, lengths = jnp.tile(jnp.asarray(tokens(1, 3, 64)), (4, 1)), np.full(4, 3)
    run = jax.jit(functools.partial(generate, model, steps=8, temperature=1.0, top_k=40, top_p=0.95))
    first, again, other = (run(params, prompts, lengths, jax.random.key(seed)) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not np.array_equal(first.tokens, other.tokens)
    assert len({tuple(row) for row in first.tokens.tolist()}) == 4


def test_each_token_of_a_text_is_drawn_anew():
    """Check that each token is drawn with a new key; with parameters of 0 a reused key would repeat its token."""
    model, params = built()
    run = jax.jit(functools.partial(generate, model, steps=8, temperature=1.0))
    found = run(jax.tree.map(jnp.zeros_like, params), jnp.asarray(tokens(3, 3, 64)), np.full(3, 3), KEY)
    assert all(len(set(row)) > 4 for row in found.tokens.tolist())


def test_a_cache_serves_a_model_in_bfloat16():
    model, params = built()
    prompts = tokens(2, 4, 64)
    half = jax.jit(functools.partial(generate, in_dtype(model, "bfloat16"), steps=3, temperature=0.0))(
        params, prompts, np.array([4, 4]), KEY
    )
    assert half.tokens.shape == (2, 3) and half.tokens.dtype == jnp.int32


LOGITS = jnp.log(jnp.asarray([0.5, 0.25, 0.15, 0.1]))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"temperature": 0.5, "top_p": 0.8}, [0.8, 0.2, 0, 0]),  # at temperature 1, top_p would keep a third token
        ({"top_p": 0.76}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        ({"top_k": 3, "top_p": 0.8}, [2 / 3, 1 / 3, 0, 0]),  # two of the three tokens hold 0.83 of their sum
        ({"top_k": 9}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_distribution_that_the_settings_leave(settings, expected):
    settings = {"temperature": 1.0, "top_k": None, "top_p": 1.0} | settings
    drawn = jax.jit(lambda x: sample_tokens(x, KEY, **settings))(jnp.tile(LOGITS, (4000, 1)))
    share = np.bincount(drawn, minlength=4) / 4000
    assert_close(share, np.asarray(expected), rtol=0, atol=0.03)
    assert all(share[n] == 0 for n in range(4) if expected[n] == 0)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_that_draw_nothing_are_refused(wrong):
    model, params = built()
    with pytest.raises(ValueError, match="steps and top_k must be positive"):
        generate(
            model,
            params,
            jnp.asarray(tokens(1, 3, 64)),
            jnp.array([3]),
            KEY,
            **({"steps": 2, "temperature": 1.0} | wrong),
        )
