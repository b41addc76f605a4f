"""Check that code outside of the folder teachers/ never asks for an option of a teacher by its name."""

import re
from pathlib import Path

from jaxdistill.teachers.build import OPTIONS

PACKAGE = Path(__file__).parents[2] / "jaxdistill"
NAMES = "|".join(option.key for option in OPTIONS)
ASKED = re.compile(rf"options(\.get\(|\[)[\"']({NAMES})[\"']")


def test_no_code_outside_teachers_asks_for_an_option_by_name():
    files = [file for file in PACKAGE.rglob("*.py") if "teachers" not in file.parts]
    assert [str(file) for file in files if ASKED.search(file.read_text())] == []
    assert ASKED.search("teacher.options.get('cache')")
