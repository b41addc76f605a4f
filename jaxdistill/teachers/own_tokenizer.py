"""The option `reads`: let a teacher read its own fields of the batch, such as tokens of its own tokenizer."""

from jaxdistill.core.errors import ConfigError
from jaxdistill.models.combinators import with_prefix
from jaxdistill.teachers.option import Context, Option
from jaxdistill.teachers.teacher import Teacher


def apply(teacher: Teacher, prefix: str, context: Context) -> Teacher:
    """Make a teacher read the batch fields whose names begin with `prefix`, such as the tokens of its own tokenizer.

    Args:
        teacher: the teacher.
        prefix: prefix of the fields, such as "teacher/".
        context: the run, whose data must have such fields.

    Raises:
        ConfigError: the tokenization of the data makes no fields with this prefix; or the model is `siamese`, which
            reads both texts of an example itself.
    """
    if teacher.network.second_prefix:
        problem = f"{prefix!r}: the model reads both texts of a record itself"
        raise ConfigError(f"{teacher.path}.reads", f"{problem}. Leave it empty, or give the network alone.")
    tokenization = context.data.tokenization
    known = tokenization.others if tokenization else {}
    if prefix not in known:
        made = "aligned(...), or sentences(...) with teacher= or teacher_fields=, makes 'teacher/'"
        cure = f"Known: {', '.join(map(repr, known))}" if known else f"In data.tokens, {made}"
        raise ConfigError(f"{teacher.path}.reads", f"{prefix!r}: the data have no fields with this prefix. {cure}.")
    return teacher.replaced(network=with_prefix(teacher.network, prefix))


OPTION = Option(
    "reads",
    apply,
    lacks=lambda _: {
        "training": "such training uses the student's tokens",
        "cutting": "a student that is cut out of a teacher reads the same fields",
    },
)
