"""Files as PyTorch wrote them before version 1.6: five pickles, then the values of the storages."""

import collections
import pickle
import struct

import numpy as np

from jaxdistill.models.hub.torch_legacy import MAGIC, PROTOCOL

VALUES = np.arange(12, dtype=np.float32)


def tensor(key="0", size=12, offset=0, shape=(3, 4), strides=(4, 1), kind="FloatStorage", view=None):
    stored = Stored(kind, key, size, view)
    return Named("torch._utils", "_rebuild_tensor_v2"), (stored, offset, shape, strides, False, {})


class Named:
    def __init__(self, module, name):
        self.module, self.name = module, name


class Stored(collections.namedtuple("Stored", "kind key size view")):
    pass


class Made:
    """A pickled call of a function that is looked up by its name only when the pickle is read."""

    def __init__(self, function, args):
        self.function, self.args = function, args


class Writer(pickle._Pickler):
    """Python's pickler, which also writes names and storages of modules that are not installed here."""

    def persistent_id(self, value):
        return (
            ("storage", Named("torch", value.kind), value.key, "cpu", value.size, value.view)
            if isinstance(value, Stored)
            else None
        )

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Named):
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Made):
            self.save(value.function)
            self.save(value.args)
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


def write(path, content, storages=(("0", VALUES),), magic=MAGIC):
    with path.open("wb") as file:
        for part in (magic, PROTOCOL, {"little_endian": True}, content, [key for key, _ in storages]):
            Writer(file, 2).dump(part)
        for _, values in storages:
            file.write(struct.pack("<q", values.size) + values.tobytes())
    return path


def holding(**tensors):
    return collections.OrderedDict((name, Made(*each)) for name, each in tensors.items())
