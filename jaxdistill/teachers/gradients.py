"""The option `gradients`: make a teacher return gradients of its outputs too, for loss terms that match gradients.

This option is not a key of the config. It is set automatically if a loss term needs such gradients.
"""

from jaxdistill.models.derivatives import with_gradients
from jaxdistill.teachers.option import Option

OPTION = Option(
    "gradients", lambda teacher, needs, context: teacher.replaced(network=with_gradients(teacher.network, needs, 1))
)
