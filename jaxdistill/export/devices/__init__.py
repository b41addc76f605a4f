"""The target devices of exported files, one in each module.

To add one, write a file here and register its factory, `@devices.register`; it returns a `Device`.
"""

from jaxdistill.export.devices import cpu, ethos_u65, own

__all__ = ["cpu", "ethos_u65", "own"]
