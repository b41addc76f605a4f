"""Options of a teacher and the config keys that set them."""

from typing import get_args

import jax
import numpy as np
import pytest
import runs

from jaxdistill.models.build import build_model
from jaxdistill.run.config import differ
from jaxdistill.run.resolve import resolve
from jaxdistill.run.schema import SCHEMA
from jaxdistill.teachers import gradients
from jaxdistill.teachers.build import OPTIONS, TeacherConfig
from jaxdistill.teachers.option import Capability

KEY = jax.random.key(0)
KEYS = set(SCHEMA["teachers"].entry)
VALUES = {
    "cache": "outputs(folder='cache')",
    "classes": (0, 1),
    "placement": "submesh(devices=1)",
    "quantized": "int8",
    "reads": "teacher/",
}


def test_every_option_is_a_key_of_a_teacher_except_gradients_which_the_losses_set():
    """Check the keys: a run reads `section.get(option.key)`, so an option with a misspelt key would never be set."""
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


def test_a_map_of_classes_is_applied_before_outputs_are_sent_or_stored(monkeypatch):
    monkeypatch.setattr("jaxdistill.run.rules.specs.manifest.choose_step", lambda *_: 1)  # as if the checkpoint existed
    model = "mlp(widths=(16, 16), classes=7)"
    with runs.registries_as_found():
        options = {"model": model, "checkpoint": "a run", "classes": (2, 4, -1, 0)}
        config = differ(runs.load(), teachers={"big": options | {"placement": "submesh(devices=2)"}})
        resolved = resolve(config, jax.devices())
        mapped, bare = resolved.live_teacher("big").network, build_model(model, "", "float32")
        assert resolved.teachers["big"].fields("train")["placement/big/logits"] == ((4,), "float32")
    batch = {"image": np.zeros((2, 8, 8, 1), np.uint8)}
    values = jax.jit(bare.init)(KEY, batch)
    logits = lambda model: jax.jit(lambda: model.apply(*values, batch, train=False, key=KEY)[0].logits)()
    np.testing.assert_array_equal(logits(mapped)[:, [0, 1, 3]], logits(bare)[:, [2, 4, 0]])
    assert [option.key for option in OPTIONS][-2:] == ["placement", "cache"]
