"""The option `classes`: a teacher whose classes are numbered otherwise than those of the data."""

from jaxdistill.models.combinators import relabelled
from jaxdistill.teachers.option import Option

OPTION = Option(
    "classes",
    lambda teacher, classes, context: teacher.replaced(network=relabelled(teacher.network, classes)),
    lacks=lambda _: dict.fromkeys(("training", "learning"), "a teacher that learns here learns the data's own classes"),
)
