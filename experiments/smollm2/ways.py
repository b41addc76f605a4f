"""Compare live, cached and on-policy teaching: python -m experiments.smollm2.ways [--workdir DIR] [--seeds 3]

Trains the student of configs/smollm2.py for one of its four epochs, in bfloat16. It learns from a live teacher, from a
cache of the largest 128 logits of every token, from a cache of 128 draws, or, in half of the steps, on text that it
wrote itself (GKD's lambda = 0.5; Agarwal et al., 2023, arxiv.org/abs/2306.13649). Two caches are written first. A study
that was stopped resumes.
"""

from rich.console import Console

from experiments.smollm2.__main__ import CONFIG, VOCABULARY
from jaxdistill.evaluation.report.study import Measure
from jaxdistill.run.commands import cache, sweep, vocabulary
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.study import Study, expand

STEPS = 155  # each token once
FULL_CONFIG, ON_POLICY = load_config(str(CONFIG)), load_config(f"{CONFIG}:on_policy")
BASE = differ(
    FULL_CONFIG,
    steps=STEPS,
    dtype="bfloat16",
    data={"test": "test[:10%]"},
    evaluate={"every": STEPS},
    logging={"every": STEPS // 2 + 1},  # so the last log line covers the second half of the run, without compilation
)


def teacher(cache_spec: str):
    """Return the changes for a teacher with this cache; empty: a live teacher."""
    return {"teachers": {"smollm2": {"model": FULL_CONFIG.teachers.smollm2.model, "cache": cache_spec}}}


STUDY = Study(
    name="smollm2.ways",
    question="Should SmolLM2 teach live, from a cache, or on the student's own text?",
    base=differ(BASE, **teacher("")),
    axes={
        "way": {
            "control": {"teachers": {}, "objective": {"cross_entropy": {}}},
            "live": {},
            "cached: top 128 and the rest": teacher("outputs(folder='runs/smollm2/top', dtype='float16', top=128)"),
            "on its own text": {"step": ON_POLICY.step, "objective": ON_POLICY.objective.to_dict()},
            "cached: 128 draws": teacher("draws(folder='runs/smollm2/draws', count=128)"),
        }
    },
    baseline="control",
    measures=(
        Measure("perplexity", "perplexity"),
        Measure("nll", "nats per token", digits=3),
        Measure("kl", "KL from the teacher (nats)", digits=3),
        Measure("steps_per_second", "tokens/s", FULL_CONFIG.batch_size * 256, digits=0),
    ),
)


def prepare(console: Console) -> None:
    """Cut the vocabulary, and write each cache of teacher outputs."""
    if not (VOCABULARY / "vocabulary.json").is_file():
        console.print(vocabulary.reduce_vocabulary(load_config(f"{CONFIG}:whole"), VOCABULARY, 0))
    for config in expand(STUDY).values():
        if any(entry.cache for entry in config.teachers.values()):
            cache.write(config, console)


if __name__ == "__main__":
    sweep.main(STUDY, __doc__, prepare)
