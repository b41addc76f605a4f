"""Check that an embedding table with too few rows for the categories is refused before anything is trained."""

import numpy as np
import pytest
import runs
from own_runs import config_of

from jaxdistill import differ
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.run.distill import check_config


def test_a_category_without_a_row_is_named(home):
    def clicked(split: str) -> list[dict]:
        largest = {"train": 5, "test": 7}[split]
        return [{"categories": np.int32([0, n % (largest + 1)]), "label": n % 2} for n in range(48)]

    with runs.registries_as_found():
        datasets.register(clicked)
        model = "dcn(categories={}, width=2, classes=2, widths=(4,))"
        config = differ(config_of("mlp", home), data={"name": "clicked"}, teachers={}, objective={"cross_entropy": {}})
        for rows, path in ((6, "student.model"), (7, "student.model")):
            with pytest.raises(ConfigError, match=rf"{path}: has a table of {rows} rows, .* 7. Set categories=8"):
                check_config(differ(config, student={"model": model.format(rows)}), None)
        check_config(differ(config, student={"model": model.format(8)}), None)
