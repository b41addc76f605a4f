"""Check that each device gets its rows of a batch: in two processes, with devices in any order, and under pmap.

`python test_rows.py PROCESS PORT` runs one of the two processes.
"""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import runs
from jax.sharding import Mesh

from jaxdistill.core.interfaces import Step
from jaxdistill.core.types import NO_VARIABLES, TrainState
from jaxdistill.parallel.compile import local_row_numbers, put_rows
from jaxdistill.parallel.pmap import pmap_engine

ROWS = np.arange(48, dtype=np.float32).reshape(16, 3)  # a global batch
ORDERS = (  # devices of each mesh: 0 and 1 belong to the first process, 2 and 3 to the second
    [[[0], [1]], [[2], [3]]],
    [[[0], [2]], [[1], [3]]],
    [[[3], [0]], [[2], [1]]],
    [[[0, 2]], [[1, 3]]],  # two devices share rows
)


def check(process: int, port: str) -> None:
    """Put the rows of this process on each mesh, and compare every shard with its part of the global batch."""
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    for order in ORDERS:
        mesh = Mesh(np.asarray(jax.devices())[np.asarray(order)], ("data", "fsdp", "tensor"))
        mine = local_row_numbers(mesh, len(ROWS))
        whole = put_rows({"x": ROWS[mine]}, mesh)["x"]
        assert whole.shape == ROWS.shape
        for shard in whole.addressable_shards:
            assert np.array_equal(shard.data, ROWS[shard.index]), (order, shard.index)
        assert float(jax.jit(lambda x: (x * x).sum())(whole)) == float((ROWS * ROWS).sum())


def test_two_processes_put_their_rows_where_they_belong():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    environment = {**os.environ, **flags, "PYTHONPATH": f"{runs.ROOT}:{runs.ROOT / 'tests'}"}
    commands = [(sys.executable, str(Path(__file__).absolute()), str(number), port) for number in range(2)]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(c, env=environment, stdout=pipe, stderr=pipe, text=True) for c in commands]
    try:
        ends = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ends


def test_pmap_initialises_from_the_whole_batch_and_splits_it_by_rows():
    """Check the batches that `init` and `update` receive, with a step that stores them in its state."""

    def init(key, teachers, batch, start):
        return TrainState(jnp.zeros((), jnp.int32), {}, {"batch": batch}, (), key)

    def update(state, teachers, batch):
        return dataclasses.replace(state, state={**state.state, "mine": batch}), {}

    shapes = {"train": {"x": jax.ShapeDtypeStruct(ROWS.shape, ROWS.dtype)}}
    step = Step(init, update, frozenset({"train"}))
    engine = pmap_engine(step, lambda *_: {}, jax.devices()[:4], (), (), shapes)
    batch = engine.put({"train": {"x": ROWS}})
    assert np.array_equal(batch["train"]["x"], ROWS.reshape(4, 4, 3))
    state = engine.init(jax.random.key(0), batch, NO_VARIABLES)
    assert np.array_equal(engine.export(state).state["batch"]["train"]["x"], ROWS)
    after, _ = engine.update(state, batch)
    assert np.array_equal(after.state["mine"]["train"]["x"], ROWS.reshape(4, 4, 3))


if __name__ == "__main__":
    check(int(sys.argv[1]), sys.argv[2])
