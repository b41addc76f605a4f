"""Teachers that learn together with their student: peers, a wider network, the student's running average.

Command: python -m jaxdistill.main --config configs/peers.py:mutual --workdir runs/mutual

    mutual        two peers; every network learns from the others: Zhang et al., Deep Mutual Learning, 2018
                  (arxiv.org/abs/1706.00384)
    co_training   a wider network learns from labels alone, while the student learns from it
    mean_teacher  the student's running average: Tarvainen and Valpola, 2017 (arxiv.org/abs/1703.01780)
    alone         the control: the same student on labels alone

Cost: under a minute each. Result: in `experiments/peers`, over 3 seeds on 500 digits: no gain.
"""

from jaxdistill import choose, differ, make

MODEL, WIDE = "mlp(widths=(128,), classes=10)", "mlp(widths=(256, 256), classes=10)"


def learns(step, *peers):
    """Return the changes for a student that learns from labels and from untrained peers."""
    return {
        "step": step,
        "teachers": {f"peer{number}": {"model": model} for number, model in enumerate(peers)},
        "fusion": "average()",
        "objective": {"cross_entropy": {}, "kd": {"term": "kd(temperature=1.0)"}},
    }


WAYS = {
    "mutual": learns("mutual()", MODEL, WIDE),
    "co_training": learns("mutual(terms=('cross_entropy',))", WIDE),
    "mean_teacher": learns("averaged(momentum=0.98)", MODEL),
    "alone": {},
}


def get_config(word="mutual"):
    config = make(
        title="Peers, on 500 digits",
        steps=600,
        batch_size=50,
        student={"model": MODEL},
        objective={"cross_entropy": {}},
        control=False,
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.003)",
        data={"name": "mnist5k", "train": "train[:500]", "augment": ("shift(pixels=2)",)},
        evaluate={"every": 200, "batch_size": 500},
    )
    return differ(config, **choose(word, WAYS))
