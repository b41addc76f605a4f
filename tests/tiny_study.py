"""A study with five arms of four steps, and the text of a config file that registers a loss."""

import runs
from rich.console import Console

from jaxdistill.run.config import differ
from jaxdistill.run.study import Study

QUIET = Console(quiet=True)
OWN = f"""
from jaxdistill import differ, load_config
from jaxdistill.core.registry import losses
from jaxdistill.losses.term import stateless


@losses.register
def mine():
    return stateless(lambda signals: 0.1 * (signals.student.logits**2).mean(-1))


def get_config():
    return differ(load_config({str(runs.TINY)!r}), teachers={{}}, objective={{"mine": {{}}}}, control=False)
"""
TERMS = ("kd(temperature=1.0)", "kd(temperature=4.0)")


def study(**differences) -> Study:
    """Return a study of two temperatures by two batch sizes, and labels alone: five arms of 4 steps."""
    base = differ(runs.load(), steps=4, teachers={"big": {"model": "mlp(widths=(16,), classes=4)", "steps": 4}})
    axes = {"objective.kd.term": TERMS, "labels": {"few": {}, "many": {"batch_size": 16}}}
    alone = {"labels alone": {"teachers": {}, "objective": {"cross_entropy": {}}}}
    whole = Study("tiny", "Is <b> bold?", base, axes, f"{TERMS[0]} | few", alone)
    return whole._replace(**differences)


ROW = {"name": "student", "accuracy": 0.5}
