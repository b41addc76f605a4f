"""Gradients of a teacher's outputs, where a term of the objective needs them; no key of a config."""

from jaxdistill.models.derivatives import with_needed
from jaxdistill.teachers.option import Option

OPTION = Option(
    "gradients", lambda teacher, needs, context: teacher.replaced(network=with_needed(teacher.network, needs, 1))
)
