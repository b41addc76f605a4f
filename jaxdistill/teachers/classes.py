"""The option `classes`: a teacher whose classes have other numbers than those of the data."""

from jaxdistill.models.combinators import remap_classes
from jaxdistill.teachers.option import Option

OPTION = Option(
    "classes",
    lambda teacher, classes, context: teacher.replaced(network=remap_classes(teacher.network, classes)),
    lacks=lambda _: dict.fromkeys(("training", "learning"), "a teacher that it trains has the classes of the data"),
)
