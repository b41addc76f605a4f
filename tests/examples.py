"""Examples of every registered part. The laws are in `test_laws.py`, those of fusions in `test_fusion_laws.py`.

A new part needs a line in its table here (a test requires it), and is then held to every law of its kind.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

import jaxdistill.core.optim
import jaxdistill.data
import jaxdistill.fusion
import jaxdistill.losses
import jaxdistill.models
import jaxdistill.steps  # noqa: F401  (importing registers the parts)
from jaxdistill.core.schedules import Horizon
from jaxdistill.run.parts import step_converters

HORIZON = Horizon(steps=100, epoch=10.0)
TIMED = step_converters(HORIZON)


class Example(NamedTuple):
    """A spec of a part, and the properties that the laws of its kind check.

    Args:
        spec: the part as a config writes it.
        least: True if a loss has its least value where the student equals its teacher.
        extent: height and width, or length, of the hidden states that a loss needs; None if it works with and without.
        draws: True if a loss or fusion draws at random, so that a permutation of rows changes its values.
        detaches: "student" or "teachers", where the gradient of a loss is not that of its value, because its paper
            holds a part constant: a copy of the student, or Z of crd.
        symmetric: True if a fusion treats its teachers alike.
        hidden_states: the number of hidden states that a model returns.
        statistics: True if a model normalises by statistics of its batch and keeps them as its state.
        inputs: what a model reads: "image", "text" (a label for each row), "tokens" (one for each token),
            "clicks" (categories) or "pairs" of image and text, whose logits compare each row with every row.
        falls: the metric that falls while a step trains on learnable data; not the loss if its target moves.
        alike: True if the first teacher of a step must have the student's network.
        stream: the stream on which a step compares the student with its teachers, if not the training records.
    """

    spec: str
    least: bool = False
    extent: tuple[int, ...] | None = None
    draws: bool = False
    detaches: tuple[str, ...] = ()
    symmetric: bool = False
    hidden_states: int = 0
    statistics: bool = False
    inputs: str = "image"
    falls: str = "loss"
    alike: bool = False
    stream: str = "train"


LOSSES = {
    "affinity": [Example("affinity"), Example("affinity(scale=5.0)")],
    "attention_transfer": [Example("attention_transfer", least=True, extent=(2, 3))],
    "cc": [Example("cc", least=True)],
    "class_graph": [Example("class_graph(edges=((0, 1), (1, 1, 0.5)), kernel='head/kernel')")],
    "contrastive": [Example("contrastive")],
    "crd": [Example("crd(records=20, negatives=8, width=3)", draws=True, detaches=("student", "teachers"))],
    "cross_entropy": [
        Example("cross_entropy"),
        Example("cross_entropy(label_smoothing=0.1)"),
        Example("cross_entropy(target='label_probs')"),
    ],
    "decay": [Example("decay"), Example("decay(towards='teacher')", least=True)],
    "dist": [Example("dist", least=True)],
    "dkd": [Example("dkd", least=True)],
    "embedding": [Example("embedding"), Example("embedding(projector='none', side='texts')", least=True)],
    "fisher_hints": [Example("fisher_hints"), Example("fisher_hints(projector='none')", least=True)],
    "fsp": [Example("fsp", least=True, extent=(2, 3))],
    "fused_hidden": [Example("fused_hidden"), Example("fused_hidden(projector='none')", least=True)],
    "gold": [Example("gold(temperature=2.0)", least=True), Example("gold(beta=0.5)", least=True)],
    "graph": [
        Example("graph(edges=((0, 1), (1, 2, 0.5), (2, 0), (3, 5), (3, 3)), node='index')", least=True),
        Example("graph(edges=((0, 1), (1, 2), (2, 3)), relation='similarity', level='classes', node='index')"),
    ],
    "hard": [
        Example("hard(loss=kd(temperature=1.0))", detaches=("teachers",)),
        Example("hard(loss=cross_entropy(), by='loss', share=0.8, power=2.0)", detaches=("student",)),
    ],
    "heads": [
        Example("heads(((2, 1), (1, 0), (2, 0), (1, 1)))"),
        Example("heads(((2, 1), (1, 0)), student_heads=((2, 1), (1, 0)), match='scores')", least=True),
    ],
    "hidden": [
        Example("hidden"),
        Example("hidden(layers='last', distance='cosine')"),
        Example("hidden(projector='mlp', weights=(1, 3))"),
        Example("hidden(layers='last', projector='conv')", extent=(2, 3)),
        Example("hidden(projector='none')", least=True),
        Example("hidden(projector='none', distance='cosine')", least=True),
    ],
    "interactive": [Example("interactive")],
    "jacobian": [Example("jacobian", least=True)],
    "jsd": [
        Example("jsd(temperature=2.0)", least=True),
        Example("jsd(beta=0.9, normalized=True)", least=True),
    ],
    "kd": [
        Example("kd", least=True),
        Example("kd(temperature=1.0, scale_t2=False)", least=True),
        Example("kd(temperature=linear(start=8.0, end=2.0))", least=True),
    ],
    "known_classes": [Example("known_classes(loss=kd(temperature=2.0))", least=True)],
    "logit_mse": [Example("logit_mse", least=True)],
    "loss_gradients": [
        Example("loss_gradients(projector='fixed')"),
        Example("loss_gradients(projector='none')", least=True),
    ],
    "minilm": [Example("minilm", least=True)],
    "minilm2": [Example("minilm2(relation_heads=4)", least=True)],
    "nst": [Example("nst", least=True, extent=(2, 3))],
    "pkd": [Example("pkd", least=True, extent=(2,)), Example("pkd('uniform', 'mlp')", extent=(2,))],
    "pkt": [Example("pkt", least=True)],
    "policy_gradient": [
        Example("policy_gradient(own=True)", detaches=("student",)),
        Example("policy_gradient(own=True, normalized=False, clip=3.0)", detaches=("student",)),
    ],
    "related_labels": [Example("related_labels(edges=((0, 1), (1, 1, 0.5)), share=0.3)")],
    "reverse_kl": [Example("reverse_kl(temperature=2.0)", least=True)],
    "review": [Example("review", extent=(2, 3))],
    "rkd": [
        Example("rkd", least=True),
        Example("rkd(triplets=50, layers=(-1, -1))", draws=True),
    ],
    "routed_hidden": [
        Example("routed_hidden(layers=((1, 1), (2, 2)))"),
        Example("routed_hidden(layers=((1, 1), (2, 2)), projector='none')", least=True),
    ],
    "semckd": [Example("semckd(layers=((2, 1), (2, 2)), size=3)")],
    "sigmoid": [Example("sigmoid")],
    "similarity": [Example("similarity(layers=(-1, -1))", least=True)],
    "skew_kl": [Example("skew_kl", least=True), Example("skew_kl(version='v1', temperature=2.0)")],
    "skew_reverse_kl": [
        Example("skew_reverse_kl(temperature=2.0)", least=True),
        Example("skew_reverse_kl(version='v2')", least=True, detaches=("student",)),
    ],
    "sobolev": [Example("sobolev", least=True)],
    "standardized": [Example("standardized(loss=kd(temperature=2.0))", least=True)],
    "taid": [Example("taid(floor=linear(start=0.4, end=1.0))", detaches=("student",))],
    "tinybert": [Example("tinybert"), Example("tinybert(projector='none')", least=True)],
    "ttm": [Example("ttm"), Example("ttm(temperature=1.0, weighted=True)", least=True)],
    "uld": [Example("uld", least=True)],
    "vid": [Example("vid")],
}

FUSIONS = {
    "average": [Example("average", symmetric=True), Example("average(of='logits')", symmetric=True)],
    "confidence": [Example("confidence", symmetric=True)],
    "gate": [
        Example("gate", symmetric=True),
        Example("gate(inputs=('student',), width=3)"),
        Example("gate(inputs=('teachers', 'disagreement'), top=2)"),
    ],
    "entropy": [Example("entropy", symmetric=True), Example("entropy(of='logits')", symmetric=True)],
    "min_norm": [Example("min_norm", symmetric=True), Example("min_norm(each='row')", symmetric=True)],
    "sampled": [Example("sampled", draws=True)],
    "single": [Example("single")],
}

# The terms of the laws' objective that count as tasks, which are all but `decay`.
TASKS = "terms=('kd', 'cross_entropy', 'hidden')"

STEPS = {
    "averaged": [
        Example("averaged(momentum=0.9)", alike=True),
        Example("averaged(momentum=linear(start=0.0, end=1.0), every=3)", alike=True),
    ],
    "batch_selection": [
        Example("batch_selection(loss=cross_entropy(), share=0.5)"),
        Example("batch_selection(loss=kd(temperature=2.0), share=0.75, by='hard')"),
    ],
    "ewc": [Example("ewc(weight=10.0, every=3)")],
    "gradnorm": [Example(f"gradnorm({TASKS})")],
    "meta": [Example("meta(learns=('teachers', 'weights', 'temperature'), inner_steps=2)")],
    "mgda": [Example(f"mgda({TASKS})")],
    "mutual": [
        Example("mutual(terms=('kd', 'cross_entropy'))"),
        Example("mutual(terms=('cross_entropy',))", falls="peers/1/loss"),
    ],
    "offline": [Example("offline")],
    "on_policy": [
        Example("on_policy(prompt=2)", inputs="tokens", stream="samples"),
        Example("on_policy(prompt=3, share=linear(start=0.0, end=1.0), stop=(2,))", inputs="tokens", stream="samples"),
    ],
    "pseudo_labels": [Example("pseudo_labels", falls="quiz/loss")],
    "replay": [Example("replay(size=20)")],
    "routing": [
        Example("routing"),
        Example("routing(by='quiz')"),
        Example("routing(by='reinforce')"),
        Example("routing(probes=(0, 1))"),
    ],
    "tuned_teacher": [Example("tuned_teacher(updates=4)")],
    "uncertainty": [Example(f"uncertainty({TASKS})")],
}
# The fusion that a part needs. In the laws, other steps average their teachers; other losses read the first one.
FUSED_BY = {
    "fused_hidden": "average()",
    "routed_hidden": "gate(inputs=('teachers',), width=3, paths=2)",
    "routing": "gate(width=8, paths=2)",
}

DECODER = "vocabulary=5, width=8, depth=2, heads=2, kv_heads=1, head_size=4, ffn=12"

VISION = "patch=4, image=8, channels=1, vision_width=16, vision_depth=2, vision_heads=2, vision_ffn=24"
TOWERS = f"vocabulary=13, positions=6, {VISION}, text_width=16, text_depth=2, text_heads=2, text_ffn=24"

MODELS = {
    "bert": [
        Example("bert(vocabulary=13, width=8, depth=2, heads=2, ffn=16, classes=5)", hidden_states=3, inputs="text"),
        Example(
            "bert(vocabulary=13, width=8, depth=1, heads=2, ffn=16, classes=5, style='roberta', attentions=True)",
            hidden_states=2,
            inputs="text",
        ),
    ],
    "clip": [Example(f"clip({TOWERS}, projection=8, end=12)", hidden_states=3, inputs="pairs")],
    "dcn": [
        Example("dcn(categories=13, width=4, classes=5, widths=(8,))", hidden_states=3, inputs="clicks"),
        Example("dcn(categories=13, width=4, classes=5, crosses=0, widths=(8,))", hidden_states=1, inputs="clicks"),
        Example("dcn(categories=13, width=4, classes=5, crosses=1, widths=())", hidden_states=1, inputs="clicks"),
    ],
    "decoder": [
        Example(f"decoder({DECODER}, {options})", hidden_states=3, inputs="tokens")
        for options in ("remat='full'", "scan_layers=False, tied=False, qk_norm=True, attentions=True", "window=2")
    ],
    "efficientnet_lite": [
        Example(
            "efficientnet_lite(stem=4, stages=((4, 1, 3, 1, 1), (8, 2, 5, 2, 6)), top=12, classes=5)",
            hidden_states=4,
            statistics=True,
        )
    ],
    "gpt2": [
        Example(f"gpt2(vocabulary=5, width=8, depth=2, heads=2, {options})", hidden_states=3, inputs="tokens")
        for options in ("remat='full'", "ffn=12, scan_layers=False, tied=False, attentions=True")
    ],
    "mlp": [Example("mlp(widths=(12, 8), classes=5)", hidden_states=2)],
    "modernbert": [
        Example(
            f"modernbert(vocabulary=13, width=8, depth=2, heads=2, ffn=12, window=2, {options})",
            hidden_states=3,
            inputs="text",
        )
        for options in ("classes=5", "classes=5, pool='mean', attentions=True")
    ],
    "resnet": [Example("resnet(widths=(4, 8), blocks=1, classes=5)", hidden_states=3, statistics=True)],
    "resnet_imagenet": [
        Example(
            "resnet_imagenet(widths=(8,), depths=(2,), classes=5, stem=4, channels=1)", hidden_states=2, statistics=True
        )
    ],
    "dinov2": [
        Example("dinov2(patch=4, width=8, depth=2, heads=2, classes=5, image=8, channels=1)", hidden_states=3),
        Example(
            "dinov2(patch=4, width=8, depth=1, heads=2, classes=5, image=12, channels=1, registers=2)", hidden_states=2
        ),
    ],
    "deit": [
        Example("deit(patch=4, width=8, depth=2, heads=2, classes=5, image=8, channels=1)", hidden_states=3),
    ],
    "siglip": [Example(f"siglip({TOWERS})", hidden_states=3, inputs="pairs")],
    "cosine_head": [Example("cosine_head(mlp(widths=(6, 4), classes=1), classes=5)", hidden_states=2)],
    "siamese": [
        Example(
            "siamese(bert(vocabulary=32, width=8, depth=1, heads=2, ffn=8, positions=8, classes=0))",
            hidden_states=2,
            inputs="pairs",
        )
    ],
    "towers": [
        Example(
            "towers(images=vit(patch=4, width=8, depth=2, heads=2, classes=1), "
            "texts=bert(vocabulary=32, width=8, depth=1, heads=2, ffn=8, positions=8, classes=0), width=8)",
            hidden_states=3,
            inputs="pairs",
        )
    ],
    "vit": [
        Example("vit(patch=4, width=8, depth=2, heads=2, classes=5)", hidden_states=3),
        Example(
            "vit(patch=4, width=16, depth=2, heads=2, classes=5, pool='token', image=8, channels=1)",
            hidden_states=3,
        ),
    ],
}

SCHEDULES = {
    "constant": [Example("constant(value=0.5)")],
    "cosine": [Example("cosine(start=0.9, end=0.1, warmup=0.13)"), Example("cosine(start=-1.0, end=-2.0, warmup=0.4)")],
    "linear": [Example("linear(start=8, end=2, begin=0.25, until=0.75)"), Example("linear(start=0.1, end=0.9)")],
    "phases": [Example("phases(values=(1, 0.5, 2), at=(0.3, 0.6))")],
    "step": [Example("step(start=0.001, factor=0.9, every=3)"), Example("step(start=1, factor=1.1, every=4)")],
}

OPTIMIZERS = {
    "adafactor": [Example("adafactor")],
    "adamw": [Example("adamw(weight_decay=0.01)")],
    "lion": [Example("lion")],
    "muon": [Example("muon")],
    "sgd": [Example("sgd"), Example("sgd(momentum=0.0)"), Example("sgd(nesterov=True)")],
}

TABLES = {
    "losses": LOSSES,
    "fusions": FUSIONS,
    "steps": STEPS,
    "models": MODELS,
    "schedules": SCHEDULES,
    "optimizers": OPTIMIZERS,
}


def every(table: Mapping[str, list[Example]], **claims: bool) -> Any:
    """Run a test for each example with these properties, as in `@every(LOSSES, least=True)`; its spec is the case's id.

    Of several such examples of one part, all but the first are slow, since compiling them takes most of a suite's time.
    A mark `sampled` above this one leaves only the parts that it names fast.
    """
    makes = lambda example: all(getattr(example, claim) == value for claim, value in claims.items())
    chosen = [[example for example in table[name] if makes(example)] for name in table]
    return pytest.mark.parametrize(
        "example",
        [
            pytest.param(example, id=example.spec, marks=[pytest.mark.slow] if number else [])
            for examples in chosen
            for number, example in enumerate(examples)
        ],
    )


def slow(*values: Any) -> Any:
    """Return a case of a test that only `make test-slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)
