"""The programs that run exported files, one in each file.

Each module has `open_file(file, threads)`, which returns a function `{input: [rows, ...]} -> output [rows, ...]`, and
`NAME`, the package that it needs. None imports JAX except `jax`. To add one, write a file here.
"""
