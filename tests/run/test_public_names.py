"""Tests of the names that `jaxdistill` exports: imported on first use, and known to type checkers."""

import ast
import inspect
import subprocess
import sys

import pytest

import jaxdistill

AT_RUN_TIME = {
    **{name: (f"jaxdistill.{home}", name) for name, home in jaxdistill._HOMES.items()},
    **{name: tuple(f"jaxdistill.{home}".rsplit(".", 1)) for name, home in jaxdistill._MODULES.items()},
}


def test_type_checkers_see_the_names_that_are_imported_on_first_use():
    body = ast.parse(inspect.getsource(jaxdistill)).body
    (block,) = [node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    pairs = [(node.module, each) for node in block.body for each in node.names]
    assert {each.asname: (module, each.name) for module, each in pairs} == AT_RUN_TIME
    assert set(jaxdistill.__all__) == {"__version__", *AT_RUN_TIME}


@pytest.mark.parametrize("name", AT_RUN_TIME)
def test_a_name_is_there(name):
    assert getattr(jaxdistill, name) is not None


def test_a_name_that_is_not_there_is_an_error():
    with pytest.raises(AttributeError, match="module 'jaxdistill' has no attribute 'nothing'"):
        _ = jaxdistill.nothing


def test_the_package_is_imported_without_jax_and_without_configs():
    code = "import sys, jaxdistill; print({'jax', 'numpy', 'ml_collections'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
