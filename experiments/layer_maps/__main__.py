"""Compare layer maps for hints: python -m experiments.layer_maps [--workdir DIR] [--seeds 3]

A vision transformer of two layers learns 400 digits from labels and from the hidden states of a teacher of four layers.
The maps are top, bottom, uniform, crossed (the broken twin), and one that is learned.
"""

from pathlib import Path

from jaxdistill.run.commands import sweep
from jaxdistill.run.config_files import load_config
from jaxdistill.run.study import Study

METHODS = Path(__file__).parents[2] / "configs" / "methods.py"
LABELS = {"cross_entropy": {}}

STUDY = Study(
    name="layer_maps",
    question="Which of the teacher's layers should each layer of the student learn from?",
    base=load_config(f"{METHODS}:hidden"),
    axes={
        "objective.hidden.term": {
            "uniform: 1 from 2, 2 from 4": "hidden(layers='uniform')",
            "bottom: 1 from 1, 2 from 2": "hidden(layers=((1, 1), (2, 2)))",
            "top: 1 from 3, 2 from 4": "hidden(layers=((1, 3), (2, 4)))",
            "last: 2 from 4": "hidden(layers='last')",
            "first: 1 from 2": "hidden(layers=((1, 2),))",
            "every layer: 1 from 1 and 2, 2 from 3 and 4": "hidden(layers='1-4')",
            "crossed: 1 from 4, 2 from 1": "hidden(layers=((1, 4), (2, 1)))",
        }
    },
    baseline="uniform: 1 from 2, 2 from 4",
    further={
        "learned (semckd)": {"objective": {"semckd": {"term": "semckd(layers='uniform')", "weight": 10.0}, **LABELS}},
        "no layer": {"teachers": {}, "objective": LABELS},
    },
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
