"""Tests of reading the log of a run, with lines that a killed run left unfinished or that have changed."""

import math

from jaxdistill.core import seal
from jaxdistill.evaluation.report import logs


def test_log_of_a_killed_and_resumed_run(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'{"step": 10, "kind": "train", "loss": 3.0}\n{"step": 10, "kind": "eval", "accuracy": 0.5}\n'
        b'{"step": 20, "kind": "train", "loss": 2.0}\n'
        b'{"step": 30, "kind": "train", "lo{"step": 20, "kind": "train", "loss": 9}\n'
        b'{"step": 20, "kind": "train", "loss": 2.5}\n\n17\n'
        b'{"step": 15, "kind": "train", "loss": null}\n{"step": 40, "ki\xc3'
    )
    log = logs.read_log(tmp_path)
    steps, losses = logs.series(log.train, "loss")
    assert steps == [10, 15, 20]
    assert losses[0] == 3.0 and math.isnan(losses[1]) and losses[2] == 2.5
    assert logs.series(log.eval, "accuracy") == ([10], [0.5])
    assert logs.series(log.train, "absent") == ([], [])


def test_a_changed_line_of_a_log_is_left_out_and_named(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    lines = [seal.sealed_line({"step": step, "kind": "train", "loss": 1.5}) for step in (10, 20, 30)]
    path.write_text("\n".join([lines[0], lines[1].replace("1.5", "9.5"), lines[2]]) + "\n")
    assert logs.series(logs.read_log(tmp_path).train, "loss") == ([10, 30], [1.5, 1.5])
    said = "has changed since it was written, or is of another model; it is left out"
    assert capsys.readouterr().err == f"note: {path}, line 2, {said}\n"
