"""The option `classes`: map the classes of a teacher to those of the data, where they have other numbers."""

from jaxdistill.models.combinators import remap_classes
from jaxdistill.teachers.option import Option

OPTION = Option(
    "classes",
    lambda teacher, classes, context: teacher.replaced(network=remap_classes(teacher.network, classes)),
    lacks=lambda _: {
        **dict.fromkeys(("training", "learning"), "a teacher that it trains has the classes of the data"),
        "cutting": "a student that is cut out of a teacher has its classes",
    },
)
