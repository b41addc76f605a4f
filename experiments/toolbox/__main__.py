"""Study what cutting, distilling and training for 8 bits are each worth: python -m experiments.toolbox [--seeds 3]

Two layers of all-MiniLM-L6 with half of their neurons learn newswire topics (Reuters R8). All subsets of three tools:
the layers and neurons are cut out of the fine-tuned teacher, or taken from the pretrained model by number; its
soft targets are learned beside the labels, or labels alone; weights and inputs have 8 bits from half of the training
on, or floats. A last arm trains in 8 bits from the first step. A run that was stopped resumes.
"""

import itertools
from pathlib import Path

from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.study import Study

EDGE = load_config(str(Path(__file__).parents[2] / "configs" / "edge.py"))
MINILM = EDGE.teachers.minilm.model
BY_NUMBER = f"{MINILM.removesuffix(')')}, layers=('uniform', 2), cut=(('ffn', 'evenly', 768),))"
LABELS = {"cross_entropy": {}}

BASE = differ(
    EDGE,
    title="The toolbox: newswire topics",
    student={"model": BY_NUMBER, "quantized": ""},
    teachers={"minilm": {"model": MINILM, "steps": 0, "rate": ""}},
    exports={},
    evaluate={"every": 300},
    logging={"tensorboard": False, "every": 50},
    mesh={"data": 1},
)


def arm(cut: bool, distil: bool, quantise: bool, start: float = 0.5):
    """Return the changes for a subset of the tools."""
    model = "cut(teacher='minilm', layers=2, neurons=0.5)" if cut else BY_NUMBER
    student = {"model": model, "quantized": f"aware(weights=8, inputs=8, start={start})" if quantise else ""}
    return {"student": student, "objective": BASE.objective.to_dict() if distil else LABELS}


def name(*used: bool) -> str:
    """Return the name of a subset of the tools."""
    return (
        " + ".join(tool for tool, is_used in zip(("cut", "distil", "8 bits"), used, strict=True) if is_used) or "none"
    )


ARMS = {name(*used): arm(*used) for used in itertools.product((False, True), repeat=3)}
ARMS["cut + distil + 8 bits from the first step"] = arm(True, True, True, start=0.0)

STUDY = Study(
    name="toolbox",
    question="What are cutting, distilling and training for 8 bits each worth, and together?",
    base=BASE,
    axes={"arm": ARMS},
    baseline="none",
    teachers={  # trained once, with a seed that no student uses
        "minilm": differ(
            EDGE,
            seed=100,
            student={"model": MINILM, "quantized": ""},
            teachers={},
            objective=LABELS,
            steps=EDGE.teachers.minilm.steps,
            rate=EDGE.teachers.minilm.rate,
            exports={},
            control=False,
            evaluate={"every": 200},
            mesh={"data": 1},
        )
    },
    measures=(ACCURACY, Measure("nll", "NLL (nats)", digits=3)),
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
