"""Study routing among text teachers of four domains: python -m experiments.text_routing [--workdir DIR] [--seeds 5]

The data are sentences on films, tweets, editorials and product reviews, rated by people. all-MiniLM-L6 is fine-tuned on
each domain by itself, and once on all. A student that serves all domains learns from 3,000 texts of all four, without
labels or domains.
"""

from typing import Any

from experiments.routing import worlds  # noqa: F401  (registers the step `watched`)
from experiments.text_routing.texts import MINILM, TOKENS
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ, make
from jaxdistill.run.study import Study

DOMAINS = ("movie", "tweets", "nyt", "amazon")  # in the order of their numbers in the records
FINE_TUNED = f"pretrained({MINILM!r}, classes=5, dropout=0.0, attention_dropout=0.0)"
STEPS = {"movie": 790, "tweets": 315, "nyt": 375, "amazon": 270, "all": 1750}  # 32 texts a step, three epochs

BASE = make(
    title="Sentences of four domains",
    steps=600,
    batch_size=60,
    student={"model": "over_body(width=128)"},
    objective={"kd": {"term": "kd(temperature=1.0)"}},
    control=False,
    optimizer="adamw(weight_decay=0.0001)",
    rate="cosine(start=0.003)",
    data={"name": "sentences_of_all()", "train": "transfer", "test": "test", "tokens": TOKENS},
    evaluate={"every": 600, "batch_size": 100, "layers": ()},
    logging={"tensorboard": False, "every": 100},
    mesh={"data": 1},
)


def training_config(number: int, name: str) -> Any:
    """Return the config that trains a teacher on the labels of its domain."""
    return differ(
        BASE,
        title=f"The teacher of {name}",
        seed=100 + number,
        steps=STEPS[name],
        batch_size=32,
        student={"model": FINE_TUNED},
        objective={"cross_entropy": {}},
        clip_norm=1.0,
        rate="cosine(start=0.0003, warmup=0.1)",
        data={"name": f"graded(domain={name!r})", "train": "train", "test": "test[:20%]"},
        evaluate={"every": 1000, "batch_size": 50},
    )


teachers_named = lambda *names: {name: {"model": FINE_TUNED} for name in names}
STUDY = Study(
    name="text_routing",
    question="Does a gate choose the right teacher among four text domains?",
    base=differ(BASE, teachers=teachers_named(*DOMAINS)),
    axes={
        "learns from": {
            "routed, 2,000 labels": {
                "fusion": "gate()",
                "step": "watched(right='domain')",
                "roles": {"fusion": {"rate": "cosine(start=0.0005)"}},  # at a higher rate it memorises the labels
                "streams": {"calibration": {"split": "calibration", "batch_size": 100}},
            },
            "uniform": {"fusion": "average()"},
            "entropy": {"fusion": "entropy()"},
            **{f"{name} alone": {"teachers": teachers_named(name)} for name in DOMAINS},
            "a teacher of all": {"teachers": teachers_named("all")},
        }
    },
    baseline="routed, 2,000 labels",
    teachers={name: training_config(number, name) for number, name in enumerate(STEPS)},
    cached=True,
    measures=(
        ACCURACY,
        Measure("gate/right", "weight on the right teacher", digits=3),
        Measure("agreement", "agrees with its teacher (%)", 100, digits=1),
    ),
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
