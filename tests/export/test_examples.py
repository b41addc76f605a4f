"""Check that test records and calibration samples are those of the run, preprocessed as in the run."""

import io
import json

import numpy as np
import pytest
import runs

from jaxdistill.core import registry
from jaxdistill.core.registry import datasets
from jaxdistill.core.types import Variables
from jaxdistill.data.pipeline import Pipeline, Stream
from jaxdistill.export.examples import SAMPLES, test_examples, training_samples
from jaxdistill.export.network import Network
from jaxdistill.export.process import Session, serve

test_examples.__test__ = False
INPUTS = {"image": ((4, 4, 1), "uint8")}


def shades(split: str) -> list[dict]:
    """Build pictures of one shade each, sorted by shade: 10 of 6 x 6 pixels for the test split, else 1,000 of 8 x 8."""
    size, count = (6, 10) if split == "test" else (8, 1000)
    return [{"image": np.full((size, size, 1), n * 255 // count, np.uint8), "label": n % 2} for n in range(count)]


@pytest.fixture
def data(tmp_path):
    transforms = tuple(registry.transforms.build(spec, "") for spec in ("resize(size=4)", "flip()"))
    train = Stream("train", "data", "train", 4, (), transforms)
    test = Stream("test", "data", "test", 4, (), transforms[:1])
    with runs.registries_as_found():
        datasets.register(shades)
        yield Pipeline("shades", tmp_path, "", 0, {"train": train}, test)


def network(classes: int = 2) -> Network:
    apply = lambda variables, rows: {"logits": rows["image"].reshape(-1, 16)[:, :classes] * 1.0}
    return Network(apply, Variables({}, {}), INPUTS, "logits")


def test_samples_are_of_the_whole_data_set_and_prepared_but_not_augmented(data):
    batches = list(training_samples(network(), data))
    images = np.concatenate([batch["image"] for batch in batches])
    assert images.shape == (SAMPLES, 4, 4, 1) and batches[0].keys() == {"image"}
    assert (images.min(), images.max()) == (0, 254)  # the first and the last of sorted records


def test_test_records_are_those_of_the_run_in_their_order(data, monkeypatch, capsys):
    found = test_examples(network(), data, 4, 0)
    assert found.inputs["image"].shape == (10, 4, 4, 1) and found.labels.tolist() == [0, 1] * 5
    assert found.inputs["image"][:, 0, 0, 0].tolist() == [n * 255 // 10 for n in range(10)] and found.counts.all()
    assert (
        len(test_examples(network(), data, 4, 7).counts) == 7
        and len(test_examples(network(), data, 4, 70).counts) == 10
    )
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("jaxdistill.export.examples.LARGEST_OUTPUTS", 5 * 2 * 4)
    assert len(test_examples(network(), data, 4, 0).counts) == 5
    assert "note: 5 of 10 test records are used" in capsys.readouterr().err


def test_a_process_runs_full_batches_and_times_one_example(tmp_path):
    shapes, answers = [], io.StringIO()

    def run(rows):
        shapes.append(rows["x"].shape)
        return rows["x"] * 2

    x = np.arange(14.0).reshape(7, 2)
    np.savez(tmp_path / "x.npz", x=x)
    outputs = {"do": "outputs", "inputs": str(tmp_path / "x.npz"), "rows": 3, "outputs": str(tmp_path / "y.npy")}
    commands = [outputs, {"do": "seconds", "calls": 2}, {"do": "memory"}]
    serve(Session(run), io.StringIO("\n".join(map(json.dumps, commands))), answers)
    count, seconds, memory = map(json.loads, answers.getvalue().splitlines())
    assert np.load(tmp_path / "y.npy").tolist() == (2 * x).tolist() and count == 7
    assert shapes == [(3, 2)] * 3 + [(1, 2)] * 2 and 0 < seconds < 10 and memory > 2**20
