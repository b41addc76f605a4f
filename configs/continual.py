"""Continual learning on split digits: five tasks of two classes, one after the other; no record is seen again later.

Commands:
    python -m jaxdistill.main --config configs/continual.py:replay --workdir runs/replay

    replay    200 rows are stored with the student's logits: Buzzega et al., Dark Experience for General Continual
              Learning (DER++), 2020 (arxiv.org/abs/2004.07211)
    lwf       a copy of the student from the end of the last task teaches it: Li and Hoiem, Learning without Forgetting,
              2016 (arxiv.org/abs/1606.09282)
    ewc       elastic weight consolidation keeps important parameters near their old values: Kirkpatrick et al., 2017
              (arxiv.org/abs/1612.00796)
    plain     plain gradient descent, which forgets
    at_once   all records, shuffled: the upper bound

Cost: half a minute. Result: in `experiments/continual`, which evaluates after every task, also with the task known.
"""

from jaxdistill import choose, differ, make

TASKS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
STEPS = 200  # for each task: 5 epochs
MODEL = "mlp(widths=(100, 100), classes=10)"
WAYS = {
    "replay": {"step": "replay(size=200, alpha=0.5, beta=0.5)"},
    "lwf": {
        "step": f"averaged(momentum=0.0, every={STEPS})",
        "teachers": {"before": {"model": MODEL}},
        "objective": {"cross_entropy": {}, "kd": {"term": "kd(temperature=2.0)"}},
    },
    "ewc": {"step": f"ewc(weight=10.0, every={STEPS})"},
    "plain": {},
    "at_once": {"data": {"order": ""}},
}


def get_config(word="replay"):
    config = make(
        title="Split digits",
        steps=STEPS * len(TASKS),
        batch_size=20,
        student={"model": MODEL},
        objective={"cross_entropy": {}},
        control=False,
        optimizer="sgd(momentum=0.0)",
        rate=0.02,
        data={"name": "mnist5k", "order": f"tasks(groups={TASKS}, steps={STEPS})"},
        evaluate={"every": STEPS, "batch_size": 500},
    )
    return differ(config, **choose(word, WAYS))
