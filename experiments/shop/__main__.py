"""Study a shop's models on the edge: python -m experiments.shop reviews|clicks [--seeds 5] [--workdir DIR]

Students learn from a teacher or from labels alone, with all labels or a tenth of them; all are trained for 8 bits,
exported, and measured as files. A run that was stopped resumes.

reviews: would a customer recommend the product? all-MiniLM-L6 and two layers of it (configs/shop.py).
clicks: will a user give a film 4 stars? A wide and a narrow deep and cross network (configs/clicks.py).
"""

import sys
from pathlib import Path
from typing import Any

from experiments.shop.files import Pair, compare
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import Config, differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.study import Study

CONFIGS = Path(__file__).parents[2] / "configs"
TENTH = {"reviews": "train[:10%]", "clicks": "train[90%:]"}  # of clicks, the last ones
PAIRS = [Pair("all labels", "all labels, alone", "all"), Pair("a tenth", "a tenth, alone", "tenth")]
LABELS = {"cross_entropy": {}}
MEASURES = (Measure("auc", "AUC", digits=4), ACCURACY)


def study(kind: str) -> Study:
    """Return the study of one kind of records."""
    config = load_config(str(CONFIGS / {"reviews": "shop.py", "clicks": "clicks.py"}[kind]))
    (name,) = config.teachers
    teacher, model, tenth = config.teachers[name], config.student.model, TENTH[kind]
    base = differ(
        config,
        title=f"A shop on the edge: {kind}",
        exports={},
        teachers={"all": {"model": teacher.model}},
        student={"model": model.replace(repr(name), "'all'")},
        evaluate={"every": config.steps},
        logging={"tensorboard": False, "every": 100},
        mesh={"data": 1},
    )
    of_tenth = {
        "teachers": {"tenth": {"model": teacher.model}},
        "student": {**base.student.to_dict(), "model": model.replace(repr(name), "'tenth'")},
        "streams": {"labelled": {"split": tenth}},
    }
    soft, few = {"kd": config.objective.kd.to_dict()}, {"cross_entropy": {"stream": "labelled"}}
    arms: dict[str, dict[str, Any]] = {
        "all labels": {},
        "all labels, alone": {"objective": LABELS},
        "a tenth": {**of_tenth, "objective": {**soft, **few}},
        "a tenth, alone": {**of_tenth, "objective": few},
    }
    return Study(
        name="shop",
        question=f"What does a teacher add to {kind} on the edge, with all labels and with a tenth of them?",
        base=base,
        axes={"arm": arms},
        baseline="all labels, alone",
        teachers={"all": taught(config, name, "train"), "tenth": taught(config, name, tenth)},
        cached=True,
        measures=MEASURES,
        command=("python", "-m", "experiments.shop", kind),
    )


def taught(config: Config, name: str, split: str) -> Config:
    """Return the config that trains a teacher on the labels of a split."""
    teacher = config.teachers[name]
    return differ(
        config,
        seed=100,  # no student has it
        student={"model": teacher.model, "quantized": ""},
        teachers={},
        objective=LABELS,
        steps=teacher.steps,
        rate=teacher.rate,
        data={"train": split},
        exports={},
        control=False,
        evaluate={"every": teacher.steps},
        mesh={"data": 1},
    )


def main() -> None:
    kind = sys.argv[1] if sys.argv[1:2] and sys.argv[1] in TENTH else ""
    parser = sweep.parser(f"shop-{kind or 'reviews'}", __doc__)
    parser.add_argument("kind", choices=sorted(TENTH))
    options = parser.parse_args()

    def work() -> None:
        chosen = study(options.kind)
        sweep.execute(chosen, options)
        if not options.slurm and not options.run:
            sys.stdout.write(compare(chosen, options.workdir, options.seeds, PAIRS))

    sys.exit(sweep.guarded(work, options.debug, options.workdir, bool(options.run)))


if __name__ == "__main__":
    main()
