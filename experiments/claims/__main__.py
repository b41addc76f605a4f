"""Test a claim about weights: python -m experiments.claims [--workdir DIR] [--seeds 5]

"Weights staged from 0.7 of distillation early to 0.6 of the task late beat fixed ones." A perceptron learns 400 digits
from a wider one and from labels (configs/methods.py:kd), with the weights fixed, staged as the claim says, and staged
the other way round. The other claims are answered by other studies; README.md collects their verdicts.

Decided before the first run: 5 seeds; the two stages have 150 steps each. The claim holds if the staged weights are
significantly better than both fixed ones that they consist of.
"""

from pathlib import Path

from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config_files import load_config
from jaxdistill.run.study import Study

METHODS = Path(__file__).parents[2] / "configs" / "methods.py"
staged = lambda early, late: f"phases(values=({early}, {late}), at=(0.5,))"
of = lambda kd, labels: {"objective": {"kd": {"weight": kd}, "cross_entropy": {"weight": labels}}}

STUDY = Study(
    name="claims",
    question="Do staged weights of distillation and task beat fixed ones?",
    base=load_config(f"{METHODS}:kd"),
    axes={
        "weights": {
            "staged: kd 0.7 then 0.4": of(staged(0.7, 0.4), staged(0.3, 0.6)),
            "fixed: kd 0.7": of(0.7, 0.3),
            "fixed: kd 0.4": of(0.4, 0.6),
            "reversed: kd 0.4 then 0.7": of(staged(0.4, 0.7), staged(0.6, 0.3)),
        }
    },
    baseline="staged: kd 0.7 then 0.4",
    further={"labels alone": {"teachers": {}, "objective": {"cross_entropy": {}}}},
    measures=(ACCURACY, Measure("nll", "NLL (nats)", digits=3)),
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
