"""Options of a teacher and the config keys that set them."""

from typing import get_args

import pytest

from jaxdistill.run.schema import SCHEMA
from jaxdistill.teachers import gradients
from jaxdistill.teachers.build import OPTIONS, TeacherConfig
from jaxdistill.teachers.option import Capability

KEYS = set(SCHEMA["teachers"].entry)
VALUES = {
    "cache": "outputs(folder='cache')",
    "classes": (0, 1),
    "placement": "submesh(devices=1)",
    "quantized": "int8",
    "reads": "teacher/",
}


def test_every_option_is_a_key_of_a_teacher_except_gradients_which_the_losses_set():
    """A run reads `section.get(option.key)`, so that an option with a misspelt key would never be set."""
    assert {option.key for option in OPTIONS} - {gradients.OPTION.key} == VALUES.keys()
    assert VALUES.keys() <= KEYS
    assert gradients.OPTION.key not in KEYS


@pytest.mark.parametrize("key", VALUES)
def test_what_a_teacher_lacks_are_known_capabilities_each_with_the_option_and_a_reason(key):
    teacher = TeacherConfig("big", "mlp(widths=(8,), classes=2)", options={key: VALUES[key]})
    ((option, value),) = teacher.set_options()
    lacks = option.lacks(value)
    assert lacks and lacks.keys() <= set(get_args(Capability))
    for capability in get_args(Capability):
        assert teacher.lacks(capability) == ((key, lacks[capability]) if capability in lacks else None)
