"""Every loss for one teacher, each on 400 digits: FILE.py:NAME, such as configs/methods.py:dkd.

Paper: that of each method, see docs/methods/NAME.md. The student's loss is the labels plus this one term. The labels
have weight 0.1 where logits are matched and 1 elsewhere. The term has the weight of its paper or of its page; nothing
was searched. Three published weights, of attention_transfer, fsp and semckd, overwhelmed the labels, because these
layers are not normalised: they are lowered.
Command: python -m jaxdistill.main --config configs/methods.py:dkd --workdir runs/dkd (a minute on 2 cores)
Result: experiments/methods/README.md compares all of them with the control (the same student on labels alone), 3 seeds.

The student sees a tenth of the digits; its teacher was trained on all of them, randomly shifted. There are three pairs
of networks, chosen by what a method reads: `mlp` (logits, embeddings, gradients), `vit` (layers, attention) and `cnn`
(feature maps).
"""

from typing import NamedTuple

from jaxdistill import choose, differ, make


class Method(NamedTuple):
    """A method: its pair of networks, its loss term and the weights, or the step that weights the terms."""

    pair: str
    term: str = ""
    weight: float = 1.0
    labels: float = 1.0
    step: str = ""


PAIRS = {  # student, teacher, steps and learning rate of the teacher, learning rate of the student
    "mlp": ("mlp(widths=(64, 64), classes=10)", "mlp(widths=(256, 256), classes=10)", 600, 0.005, 0.003),
    "cnn": (
        "resnet_imagenet(widths=(8, 16), depths=(1, 1), block='basic', stem=8, channels=1, classes=10)",
        "resnet_imagenet(widths=(16, 32), depths=(1, 1), block='basic', stem=16, channels=1, classes=10)",
        400,
        0.005,
        0.005,
    ),
    "vit": (
        "vit(patch=7, width=32, depth=2, heads=4, classes=10, pool='token', image=28, channels=1)",
        "vit(patch=7, width=32, depth=4, heads=4, classes=10, pool='token', image=28, channels=1)",
        1000,
        0.002,
        0.002,
    ),
}
ALIKE = "((0, 6), (1, 7), (2, 7), (3, 5), (3, 8), (4, 9), (5, 6), (7, 9))"  # digits that look alike
TASKS = "terms=('kd', 'cross_entropy')"

METHODS = {
    # logits
    "kd": Method("mlp", "kd(temperature=4.0)", labels=0.1),
    "dkd": Method("mlp", "dkd(alpha=1.0, beta=8.0, temperature=4.0)", labels=0.1),
    "dist": Method("mlp", "dist(temperature=4.0)", labels=0.1),
    "standardized": Method("mlp", "standardized(loss=kd(temperature=2.0))", 9.0, labels=0.1),
    "logit_mse": Method("mlp", "logit_mse", labels=0.1),
    "reverse_kl": Method("mlp", "reverse_kl(temperature=4.0)", labels=0.1),
    "jsd": Method("mlp", "jsd(beta=0.5, temperature=4.0)", labels=0.1),
    "skew_kl": Method("mlp", "skew_kl(alpha=0.1, temperature=4.0)", labels=0.1),
    "skew_reverse_kl": Method("mlp", "skew_reverse_kl(alpha=0.1, temperature=4.0)", labels=0.1),
    "taid": Method("mlp", "taid(floor=linear(start=0.4, end=1.0), temperature=4.0)", labels=0.1),
    "ttm": Method("mlp", "ttm(temperature=4.0, weighted=True)", labels=0.1),
    "hard": Method("mlp", "hard(loss=kd(temperature=4.0), by='entropy')", labels=0.1),
    "uld": Method("mlp", "uld(temperature=4.0)", labels=0.1),
    "gold": Method("mlp", "gold(temperature=4.0)", labels=0.1),
    # no teacher: baselines for soft targets
    "label_smoothing": Method("mlp", "cross_entropy(label_smoothing=0.2)"),
    "related_labels": Method("mlp", f"related_labels(edges={ALIKE}, share=0.2)"),
    # relations between examples
    "rkd": Method("mlp", "rkd(distance=25.0, angle=50.0)"),
    "similarity": Method("mlp", "similarity", 3000.0),
    "pkt": Method("mlp", "pkt", 30000.0),
    "cc": Method("mlp", "cc(gamma=0.4, order=2)", 100.0),
    "crd": Method("mlp", "crd(records=4000, negatives=256, width=64)", 0.8),
    "graph": Method("mlp", f"graph(edges={ALIKE})", 25.0),
    # gradients
    "jacobian": Method("mlp", "jacobian", 10.0),
    "sobolev": Method("mlp", "sobolev", 10.0),
    "loss_gradients": Method("mlp", "loss_gradients(layers='last')"),
    "fisher_hints": Method("mlp", "fisher_hints(layers='last')"),
    # layers
    "hidden": Method("vit", "hidden(layers='uniform')"),
    "attention_transfer": Method("vit", "attention_transfer(layers='uniform')", 100.0),
    "fused_hidden": Method("vit", "fused_hidden(layers='uniform')"),  # with one teacher, the same as `hidden`
    "nst": Method("vit", "nst(layers='uniform')", 150.0),
    "fsp": Method("vit", "fsp(layers='uniform')", 0.5),
    "vid": Method("vit", "vid(layers='uniform')", 3.0),
    "review": Method("cnn", "review(layers='uniform')", 5.0),
    "semckd": Method("vit", "semckd(layers='uniform')", 10.0),
    # attention
    "pkd": Method("vit", "pkd", 100.0),
    "tinybert": Method("vit", "tinybert"),
    "minilm": Method("vit", "minilm"),
    "minilm2": Method("vit", "minilm2(relation_heads=8)"),
    "heads": Method("vit", "heads(((4, 0), (2, 0), (4, 1), (2, 1)))"),
    "decay": Method("vit", "decay(towards='teacher')", 0.001),
    # learned weights of soft targets and labels; layers chosen by a gate
    "uncertainty": Method("mlp", "kd(temperature=4.0)", step=f"uncertainty({TASKS})"),
    "gradnorm": Method("mlp", "kd(temperature=4.0)", step=f"gradnorm({TASKS})"),
    "mgda": Method("mlp", "kd(temperature=4.0)", step=f"mgda({TASKS})"),
    "routed_hidden": Method("mlp", "routed_hidden(layers=((1, 0), (1, 1)))", step="routing(probes=(0, 1))"),
}


def beside_labels(pair: str, terms: dict, labels: float = 1.0, **further):
    """Make the config of a pair of networks whose student has these terms and labels of the given weight."""
    student, teacher, steps, rate, own_rate = PAIRS[pair]
    return make(
        student={"model": student},
        teachers={
            "taught": {
                "model": teacher,
                "steps": steps,
                "rate": f"cosine(start={rate}, warmup=0.1)",
                "augment": ("shift(pixels=2)",),
            }
        },
        objective={**terms, "cross_entropy": {"weight": labels}},
        data={"select": "random(share=0.1)"},
        steps=300,
        batch_size=100,
        optimizer="adamw(weight_decay=0.0001)",
        rate=f"cosine(start={own_rate}, warmup=0.1)",
        evaluate={"every": 300, "batch_size": 500},
        **further,
    )


def get_config(name: str = "kd"):
    pair, term, weight, labels, step = choose(name, METHODS)
    entry = "kd" if step and term.startswith("kd") else name
    further = {"title": f"400 digits by {name}"}
    if step:
        further["step"] = step
    if name == "fused_hidden":
        further["fusion"] = "average()"
    config = beside_labels(pair, {entry: {"term": term, "weight": weight}}, labels, **further)
    if name != "routed_hidden":
        return config
    return differ(  # 100 further digits calibrate the gate
        config,
        fusion="gate(inputs=('student',), paths=2)",
        data={"train": "train[:3900]"},
        streams={"calibration": {"split": "train[3900:]"}},
    )
