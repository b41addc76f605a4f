"""Compare fusions of unlike teachers: python -m experiments.multi_teacher_fusion [--workdir DIR] [--seeds 3]

Four teachers teach 380 digits to a small perceptron, by every fusion and each alone: a convolutional network, a
perceptron, a transformer, and a hasty one that was trained on 190 digits for 60 steps.
"""

from pathlib import Path
from typing import Any

from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.study import Study

METHODS = Path(__file__).parents[2] / "configs" / "methods.py"
MODELS = {
    "convolution": "resnet_imagenet(widths=(16, 32), depths=(1, 1), block='basic', stem=16, channels=1, classes=10)",
    "perceptron": "mlp(widths=(256, 256), classes=10)",
    "transformer": "vit(patch=7, width=32, depth=2, heads=4, classes=10, pool='token', image=28, channels=1)",
    "hasty": "mlp(widths=(32,), classes=10)",
}
LEARNING = {  # steps, learning rate and records of each teacher
    "convolution": (400, 0.005, "train[:95%]"),
    "perceptron": (600, 0.005, "train[:95%]"),
    "transformer": (600, 0.002, "train[:95%]"),
    "hasty": (60, 0.003, "train[:190]"),
}
LABELS = {"cross_entropy": {}}
BASE = differ(
    load_config(f"{METHODS}:kd"),
    title="380 digits from four unlike teachers",
    teachers={name: {"model": model} for name, model in MODELS.items()},
    data={"train": "train[:95%]", "select": "random(share=0.1)"},
    evaluate={"layers": ()},
)


def training_config(seed: int, name: str) -> Any:
    """Return the config that trains a teacher."""
    steps, rate, records = LEARNING[name]
    return differ(
        BASE,
        title=f"The {name} teacher",
        seed=100 + seed,
        steps=steps,
        rate=f"cosine(start={rate}, warmup=0.1)",
        student={"model": MODELS[name]},
        teachers={},
        objective=LABELS,
        data={"train": records, "select": "", "augment": ("shift(pixels=2)",)},
    )


GATED = {
    "fusion": "gate()",
    "step": "routing()",
    "streams": {"calibration": {"split": "train[95%:]", "batch_size": 100}},
}
STUDY = Study(
    name="multi_teacher_fusion",
    question="Which fusion of unlike teachers is best?",
    base=BASE,
    axes={
        "fusion": {
            **{f"{name} alone": f"single(teacher={number})" for number, name in enumerate(MODELS)},
            "average of probabilities": "average()",
            "average of logits": "average(of='logits')",
            "weighted 4 : 3 : 2 : 1": "average(weights=(4, 3, 2, 1))",
            "entropy": "entropy()",
            "confidence (CA-MKD)": "confidence()",
            "min-norm gradient (AE-KD)": "min_norm()",
            "sampled": "sampled()",
            "gate, 200 labels more": GATED,
        }
    },
    baseline="average of probabilities",
    further={"labels alone": {"teachers": {}, "objective": LABELS, "fusion": "single()"}},
    teachers={name: training_config(number, name) for number, name in enumerate(MODELS)},
    cached=True,
    measures=(
        ACCURACY,
        Measure("nll", "NLL (nats)", digits=3),
        Measure("gate/share/3", "gate's share of the hasty one"),
    ),
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
