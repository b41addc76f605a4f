"""Identity of stored outputs: everything that they depend on is in it."""

import dataclasses

import jax
import runs

from jaxdistill.run.resolve import resolve
from jaxdistill.teachers.cache_identity import _selected


def test_augmented_outputs_belong_to_one_order_of_the_records():
    data = resolve(runs.load(), jax.devices()).data
    spec = "tasks(groups=((0, 1), (2, 3)), steps=10)"
    assert _selected(data) == {} and _selected(dataclasses.replace(data, order=spec)) == {"order": spec}
