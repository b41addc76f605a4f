"""The runtimes (programs that run exported files), one in each module.

Each module has `open_file(file, threads)`, which returns a function `{input: [rows, ...]} -> output [rows, ...]`, and
`PACKAGE`, the package that it needs. Only the module `jax` imports JAX. To add a runtime, write a module here.
"""
