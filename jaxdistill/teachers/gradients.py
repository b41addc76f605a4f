"""The option `gradients`: return gradients of a teacher's outputs, for terms that need them. Not a config key."""

from jaxdistill.models.derivatives import with_gradients
from jaxdistill.teachers.option import Option

OPTION = Option(
    "gradients", lambda teacher, needs, context: teacher.replaced(network=with_gradients(teacher.network, needs, 1))
)
