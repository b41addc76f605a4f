"""Check that a step gives the same gradients, state, metrics and scores on one device, on meshes, and under pmap."""

import functools
import itertools
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import Mock

import batches
import examples
import jax
import numpy as np
import pytest
from examples import STEPS
from flax import nnx

import jaxdistill.run.parts  # noqa: F401  (registers the parts)
from jaxdistill.core import registry
from jaxdistill.core.checkpoint import flatten, unflatten
from jaxdistill.core.collectives import by_rows
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.spec import parse
from jaxdistill.core.sums import PerRow
from jaxdistill.core.types import Outputs, Variables
from jaxdistill.evaluation.evaluator import evaluator
from jaxdistill.models.derivatives import with_gradients
from jaxdistill.models.nnx import from_nnx
from jaxdistill.parallel.compile import jit_engine, shard_variables
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.parallel.pmap import pmap_engine
from jaxdistill.run.rules import stage
from jaxdistill.run.views import StageView

# Most have two or more layers: from two on, networks without constraints have silently wrong gradients on (2, 2, 2).
FAMILIES = {
    "bert": "bert(vocabulary=10, width=16, depth=2, heads=2, ffn=24, classes=10, dropout=0.2)",
    "decoder": "decoder(vocabulary=10, width=16, depth=3, heads=4, kv_heads=2, head_size=8, ffn=16)",
    "chunked": "decoder(vocabulary=10, width=16, depth=1, heads=4, kv_heads=2, head_size=8, ffn=16, tied=False)",
    "efficientnet_lite": "efficientnet_lite(stem=8, stages=((8, 2, 3, 2, 2),), top=16, classes=10)",
    "mlp": "mlp(widths=(16, 24, 16), classes=10, dropout=0.3)",
    "resnet": "resnet(widths=(8, 16), blocks=1, classes=10)",
    "resnet_imagenet": "resnet_imagenet(widths=(8, 16), depths=(1, 1), classes=10, stem=8, channels=1)",
    "dinov2": "dinov2(patch=4, width=16, depth=3, heads=2, classes=10, image=12, channels=1, registers=2, dropout=0.2)",
    "deit": "deit(patch=4, width=16, depth=3, heads=2, classes=10, image=8, channels=1, dropout=0.2)",
    "vit": "vit(patch=4, width=16, depth=3, heads=2, classes=10, dropout=0.2)",
}
THIN = "mlp(widths=(16, 12, 8), classes=10, dropout=0.3)"  # the network of most cases that compare steps
TOKENS = ("decoder", "chunked")  # families with a label for each token
TEACHERS = {
    "mlp": ("mlp", "vit"),  # two different architectures
    "resnet": ("mlp", "resnet"),  # one without state, one with
    "decoder": ("decoder", "decoder"),
    "chunked": ("decoder",),
}  # the teacher of other families is an mlp
EVALUATED = ("mlp", "resnet", "decoder")
DERIVATIVES = ("jacobian", "loss_gradients(layers='last')")


class Case(NamedTuple):
    """The student, teachers, step and further options of a case, and whether its student is evaluated."""

    family: str
    teachers: tuple[str, ...]
    step: str = "offline()"
    terms: tuple[str, ...] = ()
    evaluated: bool = False
    stream: str = "train"
    quantized: str = ""
    masks: str = ""


CASES = {family: Case(family, TEACHERS.get(family, ("mlp",)), evaluated=family in EVALUATED) for family in FAMILIES}
CASES |= {
    f"{family}, derivatives": Case(family, (teacher,), terms=DERIVATIVES)
    for family, teacher in {"decoder": "decoder", "mlp": "vit", "resnet": "mlp", "vit": "mlp"}.items()
}
CASES["bert, heads"] = Case("bert", ("bert",), terms=("minilm",))  # heads are split over the axis tensor
# Inputs stay unrounded, because rounding would turn a difference in the last bit into a large one. Running ranges are
# updated before rounding starts.
CASES["decoder, rounded"] = Case("decoder", ("decoder",), quantized="aware(weights=4, inputs=0, scales='learned')")
CASES["mlp, ranges"] = Case("mlp", ("mlp",), quantized="aware(ranges='running', start=0.5)")
CASES["mlp, masks"] = Case("mlp", ("mlp",), masks="sparse(share=0.5, by='wanda', start=0.0, end=0.0)")
READERS = {"image": "thin", "tokens": "decoder"}
CASES |= {
    f"{READERS[e.inputs]}, {e.spec}": Case(READERS[e.inputs], (READERS[e.inputs],), e.spec, stream=e.stream)
    for each in STEPS.values()
    for e in each
}
del CASES["thin, offline"]  # the cases above have this step
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (1, 1, 8), "mixed": (2, 2, 2)}
ROWS, VALID = 32, 19  # 19 rows that count: devices hold 4, 3 or 0 of them


def batch(family: str = "mlp") -> dict[str, np.ndarray]:
    """Return all fields that a family may read; row r has 1 + r % 8 real tokens, and rows from VALID on are padding."""
    draw = np.random.default_rng(0)
    image = draw.integers(0, 255, (ROWS, 8, 8, 1), dtype=np.uint8)
    mask = (np.arange(ROWS) < VALID).astype(np.float32)
    label, ids = draw.integers(0, 10, ROWS, dtype=np.int32), draw.integers(0, 10, (ROWS, 8), dtype=np.int32)
    real = (np.arange(8) < 1 + np.arange(ROWS)[:, None] % 8).astype(np.int32)
    if family in TOKENS:
        return {"input_ids": ids, "label": np.roll(ids, -1, axis=1), "mask": np.float32(real * mask[:, None])}
    return {"image": image, "input_ids": ids, "attention_mask": real, "label": label, "mask": mask}


def parts(case: Case):
    family = case.family
    further = {name: WeightedTerm(registry.losses.build(name, ""), 0.5) for name in case.terms}
    needs = frozenset[str]().union(*(weighted.term.needs for weighted in further.values()))
    model = lambda name: with_gradients(registry.models.build(FAMILIES.get(name, THIN), ""), needs)
    student, teachers = model(family), tuple(map(model, case.teachers))
    pruner = registry.masks.build(case.masks, "") if case.masks else None
    if pruner:
        student = pruner.wrap(student)
    if case.quantized:
        student = registry.quantizers.build(case.quantized, "").wrap(student, 100)
    terms = further | {
        "kd": WeightedTerm(registry.losses.build("kd(temperature=3.0)", "")._replace(stream=case.stream)),
        "cross_entropy": WeightedTerm(registry.losses.build("cross_entropy()", "")),
        "hidden": WeightedTerm(registry.losses.build("hidden(layers='last')", ""), 0.1),
        "decay": WeightedTerm(registry.losses.build("decay()", ""), 0.01),
    }
    fused = registry.fusions.build(examples.FUSED_BY["routing"] if case.step.startswith("routing") else "average()", "")
    minimised = objective(terms, fused, chunks=4 if family == "chunked" else 1)
    # plain descent at rate 1: the change of the parameters IS the gradient
    update = optimizer(registry.optimizers.build("sgd(momentum=0.0)", ""), 1.0)
    update = pruner.optimizer(update, 1) if pruner else update
    named, given = parse(case.step, ""), (student, teachers, minimised, update)
    step = registry.steps.build(named._replace(args=given), "", examples.TIMED)
    values = tuple(first_values(name, family, n) for n, name in enumerate(case.teachers))
    return step, evaluator(student, teachers, registry.fusions["average"](), ((-1, -1),)), values


@functools.cache
def first_values(name: str, family: str, number: int) -> Variables:
    init = registry.models.build(FAMILIES.get(name, THIN), "").init
    return batches.drawn(Variables(*jax.eval_shape(init, jax.random.key(number), batch(family))), number)


def one_step(case: str, layout: str, start: dict[str, np.ndarray] | None = None):
    """Take one step; return its gradients, state, metrics and scores on the host, the state before it, and the engine.

    Args:
        start: the train state to begin with, as a flat dict; None means that the engine initialises it.
    """
    step, evaluate, values = parts(CASES[case])
    rows = batch(CASES[case].family)
    looks = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in rows.items()}
    shapes = dict.fromkeys(step.streams, looks)
    if layout == "pmap":
        engine = pmap_engine(step, evaluate, jax.devices()[:8], values, values, shapes)
    else:
        mesh = make_mesh(MESHES.get(layout, (1, 1, 1)))
        placed = tuple(shard_variables(value, mesh) for value in values)
        engine = jit_engine(step, evaluate, mesh, placed, placed, shapes)
    rows = engine.put(dict.fromkeys(step.streams, rows))
    if start is None:
        before = engine.init(jax.random.key(0), rows)
        start = {name: np.array(x) for name, x in jax.device_get(flatten(engine.export(before))).items()}
    else:
        given = unflatten(engine.abstract, start)
        before = engine.restore(given if layout == "pmap" else jax.tree.map(put, given, engine.abstract))
    after, metrics = engine.update(before, rows)
    judged = jax.device_get(engine.evaluate(after, rows["train"])) if CASES[case].evaluated else {}
    scores = {name: value_of(metric) for name, metric in judged.items()}
    means = {name: metric.compute() for name, metric in jax.device_get(metrics).items()}
    exported = jax.device_get(engine.export(after))
    gradients = jax.tree.map(lambda a, b: a - b, unflatten(exported, start).params, exported.params)
    return {"gradients": gradients, "state": exported.state, "metrics": means, "scores": scores}, start, engine


def value_of(metric: Any) -> Any:
    """Return the value of a metric, or the confidence of each row's prediction in the order of the global batch."""
    return metric.values["confidence"] if isinstance(metric, PerRow) else metric.compute()


def put(x: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(x, like.sharding)


@pytest.fixture(scope="module")
def reference():
    return functools.cache(lambda case: one_step(case, "one")[:2])


LAYOUTS = [
    *(("mlp", layout) for layout in MESHES),
    ("resnet", "data"),
    *((case, "mixed") for case in CASES if case != "mlp"),
    *((case, "pmap") for case in CASES),
]
# These initialise on their own layout; the others start with the state of one device, which saves compilation.
INITIALISED = ("mlp", "bert, heads")


# The fast cases: "mixed" has all three axes, bert represents the transformers, and pmap shows a sum over devices that a
# step forgot.
@pytest.mark.sampled("mlp-mixed", "bert, heads-mixed", "resnet-pmap", "thin, routing-pmap")
@pytest.mark.parametrize(("case", "layout"), LAYOUTS)
def test_a_step_is_the_same_on_every_layout(case, layout, reference):
    expected, start = reference(case)
    found, begun, _ = one_step(case, layout, None if case in INITIALISED else start)
    for name, x in start.items():
        np.testing.assert_allclose(begun[name], x, atol=1e-6, rtol=1e-6, err_msg=f"initial {name}")
    for name, want in expected.items():
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(found[name]), strict=True):
            np.testing.assert_allclose(y, x, atol=1e-5, rtol=1e-5, err_msg=f"{name} {jax.tree_util.keystr(path)}")


def test_parameters_are_split_and_never_whole_on_one_device():
    *_, engine = one_step("mlp", "mixed")
    kernel = engine.abstract.params["student"]["layers/1/kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (kernel.shape[0] // 2, kernel.shape[1] // 2)
    assert engine.compiled() == {"update": 1, "evaluate": 1}


class Plain(nnx.Module):
    """A user's flax module that constrains the sharding of its first `constrained` activations, and of no others."""

    def __init__(self, rngs, constrained=0):
        self.constrained = constrained
        sizes = (64, 16, 24, 16)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, image):
        states, x = [], image.reshape(image.shape[0], -1) / 255.0
        for number, layer in enumerate(self.layers):
            x = jax.nn.relu(layer(x))
            x = by_rows(x) if number < self.constrained else x
            states.append(x)
        return Outputs(self.head(x), tuple(states))


def constraints(model, shapes, mesh):
    """Apply the rule `activations_are_constrained` to a model alone."""
    parts = SimpleNamespace(student=model)
    stage.activations_are_constrained(Mock(StageView, mesh=mesh, parts=parts, shapes={"train": shapes}))


def test_a_model_that_constrains_nothing_is_refused_where_its_gradients_would_be_wrong():
    """Check a (2, 2, 2) mesh, where gradients were wrong by 0.1, and meshes with an axis of 1, where they are right."""
    module = lambda n: from_nnx(lambda rngs, batch: Plain(rngs, n), lambda m, batch, train, key: m(batch["image"]))
    plain = module(0)
    look = lambda family: {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch(family).items()}
    shapes = look("mlp")
    for constrained in range(3):
        with pytest.raises(ConfigError, match=rf"constrains {constrained} of its 3 activations.*by_rows"):
            constraints(module(constrained), shapes, make_mesh((2, 2, 2)))
    constraints(module(3), shapes, make_mesh((2, 2, 2)))
    for shape in ((8, 1, 1), (1, 4, 2), (4, 2, 1)):
        constraints(plain, shapes, make_mesh(shape))
    for family in FAMILIES:
        constraints(registry.models.build(FAMILIES[family], ""), look(family), make_mesh((2, 2, 2)))
