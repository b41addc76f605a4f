"""The option `reads`: a teacher that reads fields of its own, such as the tokens of its own tokenizer."""

from jaxdistill.core.errors import ConfigError
from jaxdistill.models.combinators import reading
from jaxdistill.teachers.option import Context, Option
from jaxdistill.teachers.teacher import Teacher


def apply(teacher: Teacher, prefix: str, context: Context) -> Teacher:
    """The teacher with its view of the batch.

    Raises:
        ConfigError: the data have no such fields.
    """
    how = context.data.tokenization
    known = how.others if how else {}
    if prefix not in known:
        cure = f"Known: {', '.join(map(repr, known))}" if known else "data.tokens=\"aligned(...)\" gives 'teacher/'"
        raise ConfigError(f"{teacher.path}.reads", f"{prefix!r}: the data have no such fields. {cure}.")
    return teacher.replaced(network=reading(teacher.network, prefix))


OPTION = Option(
    "reads", apply, lacks=lambda _: {"training": "its tokens are others than those a stage of this run trains on"}
)
