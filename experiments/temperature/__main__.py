"""Compare temperatures of soft targets: python -m experiments.temperature [--workdir DIR] [--seeds 3]

A perceptron learns 400 digits from a wider one, at temperatures from 1 to 16, and at one that falls during training.
"""

from pathlib import Path

from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config_files import load_config
from jaxdistill.run.study import Study

METHODS = Path(__file__).parents[2] / "configs" / "methods.py"

STUDY = Study(
    name="temperature",
    question="At which temperature do soft targets teach most?",
    base=load_config(f"{METHODS}:kd"),
    axes={
        "objective.kd.term": {
            **{f"T = {t}": f"kd(temperature={t}.0)" for t in (1, 2, 3, 4, 6, 8, 16)},
            "T from 8 to 1": "kd(temperature=linear(start=8, end=1))",
        }
    },
    baseline="T = 1",
    further={"labels alone": {"teachers": {}, "objective": {"cross_entropy": {}}}},
    measures=(
        ACCURACY,
        Measure("nll", "NLL (nats)", digits=3),
        Measure("ece", "ECE (%)", 100, digits=1),
        Measure("rank_correlation", "rank of wrong classes", digits=3),
    ),
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
