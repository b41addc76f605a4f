"""How shall SmolLM2 speak to its student? python -m experiments.smollm2.ways [--workdir DIR] [--seeds 3]

Beside a living teacher, from the largest 128 logits of every token, from 128 draws, or on text that the student has
written half of the time (GKD's lambda = 0.5; Agarwal et al., 2023, arxiv.org/abs/2306.13649): the student of
configs/smollm2.py, for one of its four epochs, in bfloat16. Two caches are written first. A study that was stopped
goes on.
"""

from rich.console import Console

from experiments.smollm2.__main__ import CONFIG, VOCABULARY
from jaxdistill.evaluation.report.study import Measure
from jaxdistill.run.commands import cache, sweep, vocabulary
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load
from jaxdistill.run.study import Study, expand

STEPS = 155  # each token once
WHOLE, OWN = load(str(CONFIG)), load(f"{CONFIG}:on_policy")
BASE = differ(
    WHOLE,
    steps=STEPS,
    dtype="bfloat16",
    data={"test": "test[:10%]"},
    evaluate={"every": STEPS},
    logging={"every": STEPS // 2 + 1},  # its last line is of the second half, which compiles nothing
)


def teacher(keep: str):
    """The teacher, read from a cache, or living."""
    return {"teachers": {"smollm2": {"model": WHOLE.teachers.smollm2.model, "cache": keep}}}


STUDY = Study(
    name="smollm2.ways",
    question="How shall SmolLM2 speak to its student?",
    base=differ(BASE, **teacher("")),
    axes={
        "way": {
            "control": {"teachers": {}, "objective": {"cross_entropy": {}}},
            "live": {},
            "cached: top 128 and the rest": teacher("outputs(folder='runs/smollm2/top', dtype='float16', top=128)"),
            "on its own text": {"step": OWN.step, "objective": OWN.objective.to_dict()},
            "cached: 128 draws": teacher("draws(folder='runs/smollm2/draws', count=128)"),
        }
    },
    baseline="control",
    measures=(
        Measure("perplexity", "perplexity"),
        Measure("nll", "nats per token", digits=3),
        Measure("kl", "KL from the teacher (nats)", digits=3),
        Measure("steps_per_second", "tokens/s", WHOLE.batch_size * 256, digits=0),
    ),
)


def prepare(console: Console) -> None:
    """Cuts the vocabulary, and asks the teacher once for each way of keeping its words."""
    if not (VOCABULARY / "vocabulary.json").is_file():
        console.print(vocabulary.cut(load(f"{CONFIG}:whole"), VOCABULARY, 0))
    for config in expand(STUDY).values():
        if any(entry.cache for entry in config.teachers.values()):
            cache.write(config, console)


if __name__ == "__main__":
    with sweep.exit_codes():
        prepare(Console())
    sweep.main(STUDY, __doc__)
