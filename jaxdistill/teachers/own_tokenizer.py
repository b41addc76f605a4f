"""The option `reads`: a teacher that reads its own fields of the batch, such as tokens of its own tokenizer."""

from jaxdistill.core.errors import ConfigError
from jaxdistill.models.combinators import with_prefix
from jaxdistill.teachers.option import Context, Option
from jaxdistill.teachers.teacher import Teacher


def apply(teacher: Teacher, prefix: str, context: Context) -> Teacher:
    """Make the teacher read the fields with a prefix.

    Raises:
        ConfigError: the data have no such fields.
    """
    tokenization = context.data.tokenization
    known = tokenization.others if tokenization else {}
    if prefix not in known:
        cure = f"Known: {', '.join(map(repr, known))}" if known else "data.tokens=\"aligned(...)\" gives 'teacher/'"
        raise ConfigError(f"{teacher.path}.reads", f"{prefix!r}: the data have no fields with this prefix. {cure}.")
    return teacher.replaced(network=with_prefix(teacher.network, prefix))


OPTION = Option("reads", apply, lacks=lambda _: {"training": "such training uses the student's tokens"})
