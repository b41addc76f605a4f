"""Tests of the loss `heads`, of the importance of attention heads, and of the command `jaxdistill heads`."""

import io
import json
from dataclasses import replace

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from batches import BATCHES, signals
from checks import assert_close
from examples import slow
from rich.console import Console
from terms import build_loss

import jaxdistill
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Array, AttentionHeads, Outputs, Signals, Variables
from jaxdistill.evaluation.interpret.head_importance import head_importance, mask_gradients, normalised, top_heads
from jaxdistill.losses.attention.heads import assign_student_heads
from jaxdistill.run.commands import heads
from jaxdistill.run.config import differ
from jaxdistill.run.distill import check_config

KEY = jax.random.key(0)


def values(spec: str, seen: Signals) -> Array:
    return build_loss(spec).apply({}, {}, seen, key=KEY)[0]


# Who learns from whom


@pytest.mark.parametrize(
    ("teacher_heads", "shape", "students"),
    [
        (((12, 3), (9, 0), (12, 7), (3, 5)), (4, 12, 12), [(4, 0), (3, 0), (4, 1), (1, 0)]),
        (((12, 3), (11, 0), (12, 7), (3, 5)), (4, 12, 2), [(4, 0), (4, 1), None, (1, 0)]),  # no third head is free
        (((1, 0), (2, 0), (1, 1)), (1, 2, 2), [(1, 0), (1, 1), None]),
        (((1, 1), (2, 1)), (4, 2, 2), [(2, 0), (4, 0)]),  # the student is deeper
    ],
)
def test_a_key_head_goes_to_the_next_free_head_at_its_relative_depth(teacher_heads, shape, students):
    assert assign_student_heads(teacher_heads, *shape) == students


def softmax_of(heads: AttentionHeads, head: int) -> np.ndarray:
    q, k = (np.asarray(x[:, :, head], np.float64) for x in (heads.query, heads.key))
    z = np.exp(np.einsum("bqd,bkd->bqk", q, k) / q.shape[-1] ** 0.5)
    return z / z.sum(-1, keepdims=True)


def test_heads_is_the_mean_over_its_pairs():
    seen = replace(signals(), batch={})
    ours, theirs = seen.student.attentions, seen.teachers[0].attentions  # 2 and 4 layers, of 2 heads each
    pairs = [((2, 0), (4, 1)), ((1, 0), (2, 0)), ((2, 1), (4, 0))]
    kl = lambda p, q: (p * np.log(p / q)).sum(-1).mean(-1)
    by_hand = [kl(softmax_of(theirs[j - 1], b), softmax_of(ours[i - 1], a)) for (i, a), (j, b) in pairs]
    assert_close(values("heads(((4, 1), (2, 0), (4, 0)))", seen), np.mean(by_hand, axis=0))
    # the fourth is skipped: teacher layer 3 belongs to student layer 2 too, whose two heads are taken
    assert_close(values("heads(((4, 1), (2, 0), (4, 0), (3, 1)))", seen), np.mean(by_hand, axis=0))
    explicit = values("heads(((3, 1), (2, 0)), student_heads=((1, 1), (1, 1)))", seen)
    said = [softmax_of(theirs[2], 1), softmax_of(theirs[1], 0)]
    assert_close(explicit, np.mean([kl(p, softmax_of(ours[0], 1)) for p in said], axis=0))


def test_scores_are_matched_by_their_mean_squared_difference():
    seen = replace(signals(), batch={})
    scores = lambda heads, head: np.einsum("bqd,bkd->bqk", heads.query[:, :, head], heads.key[:, :, head]) / 2
    apart = scores(seen.student.attentions[1], 0) - scores(seen.teachers[0].attentions[3], 1)
    assert_close(values("heads(((4, 1),), match='scores')", seen), (apart**2).mean((1, 2)))


@pytest.mark.parametrize("match", ["probabilities", "scores"])
def test_the_wrong_heads_are_told_from_the_right_ones(match):
    """Check a student whose heads are copies of 2 of the teacher's 4: only these in this order give a loss of 0."""
    draw = np.random.default_rng(0)
    teacher = AttentionHeads(*jnp.asarray(draw.normal(size=(3, 6, 5, 4, 8)), jnp.float32))
    key_heads = jnp.asarray([2, 0])
    student = jax.tree.map(lambda x: x[:, :, key_heads], teacher)
    said = lambda each: Outputs(jnp.zeros((6, 2)), (), (each,))
    seen = replace(signals(), student=said(student), teachers=(said(teacher),), batch={})
    named = lambda *order: f"heads({tuple((1, head) for head in order)}, match='{match}')"
    assert np.abs(values(named(2, 0), seen)).max() < 1e-6
    for wrong in ((0, 2), (2, 1), (3, 1)):
        assert np.min(values(named(*wrong), seen)) > 0.1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("heads(((5, 0),))", "teacher has no layer 5"),
        ("heads(((4, 2),))", "the teacher's layer 4 has no head 2; it has heads 0 to 1"),
        ("heads(((4, 1),), ((2, 3),))", "the student's layer 2 has no head 3"),
        ("heads(((4, 1),), teacher=1)", "no teacher 1"),
    ],
)
def test_a_head_that_does_not_exist_is_refused(spec, said):
    with pytest.raises(ValueError, match=said):
        values(spec, signals())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("heads(())", "jaxdistill heads --config FILE finds"),
        ("heads(((0, 1),))", r"\(0, 1\) is not a head; layers count from 1"),
        ("heads(((1, 1), (2, 1)), ((1, 0),))", "1 student_heads for 2 teacher_heads"),
    ],
)
def test_a_wrong_argument_fails_before_any_model_exists(spec, said):
    with pytest.raises(ConfigError, match=said):
        build_loss(spec)


# Importance


FAMILIES = [
    ("bert(vocabulary=13, width=8, depth=2, heads=2, ffn=16, classes=5)", "text"),
    (f"decoder({examples.DECODER})", "tokens"),  # its layers are stacked
    ("vit(patch=4, width=8, depth=2, heads=4, classes=5)", "image"),
]


def world(spec: str, kind: str, rows: int = 11):
    model, batch = registry.models.build(spec, ""), dict(BATCHES[kind](rows=rows))
    if batch["mask"].ndim > 1:  # only one token of the fourth text counts
        batch["mask"] = jnp.asarray(batch["mask"]).at[3].set(0).at[3, 0].set(1)
    params, state = jax.jit(model.init)(KEY, batch)
    louder = {name: 5 * x if name.endswith("kernel") else x for name, x in params.items()}
    return model, Variables(louder, state), batch


@pytest.mark.sampled("tokens")
@pytest.mark.parametrize(("spec", "kind"), [slow(*FAMILIES[0]), *FAMILIES[1:]], ids=[kind for _, kind in FAMILIES])
def test_a_masks_gradient_is_the_product_of_a_heads_rows_with_their_gradient(spec, kind):
    """Check the gradient of each row's own loss, which is 0 for masked rows."""
    model, variables, batch = world(spec, kind)
    found = np.asarray(jax.jit(lambda v: mask_gradients(model, v, batch))(variables))
    heads = found.shape[2]

    def loss(params, row):
        one = {name: x[row][None] for name, x in batch.items()}
        logits = model.apply(params, variables.state, one, train=False, key=KEY)[0].dense().logits
        own = -jnp.take_along_axis(jax.nn.log_softmax(logits), one["label"][..., None], -1)[..., 0]
        return jnp.sum(own * one["mask"]) / jnp.maximum(jnp.sum(one["mask"]), 1)

    slope = jax.jit(jax.grad(loss))
    for row in (0, 3, 10):
        gradient = slope(variables.params, row)
        layers = []
        for name in sorted(name for name in gradient if name.endswith("attention/out/kernel")):
            product = np.asarray(variables.params[name]) * np.asarray(gradient[name])
            layers.append(product.reshape(-1, heads, product.shape[-2] // heads * product.shape[-1]).sum(-1))
        assert_close(found[row], np.concatenate(layers), rtol=1e-4, atol=1e-6)
    assert np.abs(found[0]).min() > 1e-5 and not found[10].any()


def test_importance_is_the_mean_over_rows_that_count_of_absolute_slopes():
    model, variables, batch = world(*FAMILIES[2])
    slopes = np.abs(np.asarray(jax.jit(lambda v: mask_gradients(model, v, batch))(variables), np.float64))
    halves = [{name: x[part] for name, x in batch.items()} for part in (slice(0, 8), slice(8, 11))]
    counts = np.asarray(batch["mask"]) > 0
    assert 0 < counts.sum() < 11
    assert_close(head_importance(model, variables, halves), normalised(slopes[counts].mean(0)), rtol=1e-3, atol=1e-5)


def test_a_dead_head_is_the_least_important_and_a_loud_one_the_most():
    model, (params, state), batch = world(*FAMILIES[2])
    name = "blocks/1/attention/out/kernel"
    rows = params[name].reshape(4, 2, 8)
    params = params | {name: rows.at[2].set(0).at[1].multiply(20).reshape(8, 8)}
    found = head_importance(model, Variables(params, state), [batch])
    assert found.shape == (2, 4) and found[1, 2] == 0 and found.max() == 1
    assert top_heads(found, 1) == ((2, 1),) and top_heads(found, 8)[-1] == (2, 2)


def test_importance_is_normalised_by_layer_and_then_stretched_by_hand():
    found = normalised(np.array([[3.0, 4.0], [0.0, 1e-3], [0.0, 0.0]]))
    assert_close(found, [[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]])
    assert top_heads(found, 3) == ((2, 1), (1, 1), (1, 0))
    assert_close(normalised(np.array([[3.0, 4.0]])), [[0.0, 1.0]])
    assert_close(normalised(np.zeros((2, 2))), np.zeros((2, 2)))


HEADLESS = [("mlp(widths=(8,), classes=5)", "image"), (examples.MODELS["clip"][0].spec, "pairs")]


@pytest.mark.sampled("mlp")
@pytest.mark.parametrize(("spec", "kind"), HEADLESS, ids=["mlp", "clip"])
def test_models_without_heads_of_their_own_are_refused(spec, kind):
    model, variables, batch = world(spec, kind)
    with pytest.raises(ValueError, match="use a single transformer"):
        head_importance(model, variables, [batch])


def test_without_a_row_that_counts_there_is_no_importance():
    model, variables, batch = world(*FAMILIES[2])
    with pytest.raises(ValueError, match="the mask is 0 in every row"):
        head_importance(model, variables, [batch | {"mask": jnp.zeros(11)}])


# The command


@pytest.fixture(scope="module")
def learning(tmp_path_factory):
    """Train a small vision transformer, and yield a config with this teacher and the file of the config."""
    with runs.registries_as_found():
        folder, spec = tmp_path_factory.mktemp("heads"), "vit(patch=4, width=8, depth=2, heads=2, classes=4)"
        alone = differ(runs.load(), steps=3, teachers={}, student={"model": spec}, objective={"cross_entropy": {}})
        jaxdistill.distill(alone, folder / "vit", console=Console(file=io.StringIO()))
        teacher = {"model": spec, "checkpoint": str(folder / "vit")}
        config = differ(runs.load(), student={"model": spec}, teachers={"vit": teacher}, objective={"kd": {}})
        file = folder / "config.json"
        file.write_text(json.dumps({"config": config.to_dict()}))
        yield config, str(file)


def told(*words: str) -> tuple[int, str]:
    out = io.StringIO()
    return heads.run(["--config", *words], Console(file=out, width=80)), out.getvalue()


@pytest.mark.slow
def test_the_command_prints_a_term_that_a_config_takes(learning, tmp_path):
    config, file = learning
    code, text = told(file, "--top", "3", "--records", "40", "--config.seed=1")
    path, _, term = text.splitlines()[-1].partition(" = ")
    assert code == 0 and path == "objective.heads.term"
    taught = differ(config, objective={"heads": {"term": term.strip('"')}})
    check_config(taught, tmp_path / "run")
    found = heads.importance(differ(config, seed=1), "vit", 40)
    assert found.shape == (2, 2) and f"{found[1, 0]:.2f}" in text
    assert term == f'"heads({top_heads(found, 3)})"'


def test_of_another_teacher_the_term_says_its_number(learning, tmp_path):
    config, _ = learning
    file = tmp_path / "two.json"
    teachers = {"first": {"model": "mlp(widths=(8,), classes=4)", "steps": 5}, **config.teachers.to_dict()}
    file.write_text(json.dumps({"config": {**config.to_dict(), "teachers": teachers}}))
    code, text = told(str(file), "--teacher", "vit", "--top", "1", "--records", "8")
    assert code == 0 and text.splitlines()[-1].endswith(', teacher=1)"')


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--teacher", "vitt"], "there is no teacher 'vitt'. Did you mean 'vit'?"),
        (["--records", "0"], "--records: 0: give 1 or more"),
        (["--config.teachers.vit.checkpoint=", "--config.teachers.vit.steps=5"], "weights do not exist before the run"),
        (["--config.teachers.vit.checkpoint=nowhere"], "teachers.vit.checkpoint: "),
        (["--config.teachers.vit.model=mlp(widths=(8,), classes=3)"], "has 3 classes, but the data have 4"),
    ],
)
def test_a_mistake_is_one_line_with_the_cure(learning, words, said, capsys):
    assert told(learning[1], *words)[0] == 2
    assert said in capsys.readouterr().err
