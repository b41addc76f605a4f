"""Check that a config file gets the name of a preset only if its `get_config()` takes one."""

import pytest

from jaxdistill.core.errors import ConfigError
from jaxdistill.run.config_files import load_config


def test_a_name_for_a_config_that_takes_none_is_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config():\n    return None\n")
    with pytest.raises(ConfigError, match=r"^--config: get_config\(\) in .*takes no name\. Leave ':other' out\.$"):
        load_config(f"{file}:other")
    for call in ("name", "name='plain'", "*names"):
        file.write_text(f"from jaxdistill import make\ndef get_config({call}):\n    return make(title='{call[0]}')\n")
        assert load_config(f"{file}:other").title == call[0]
