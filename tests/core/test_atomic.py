"""Tests of atomic writes: a file or folder appears complete or not at all, and a failed write keeps the old one."""

from pathlib import Path

import pytest

from jaxdistill.core.atomic import new_file, new_folder, remove_folder, replaced_folder


def test_a_file_is_replaced_at_the_end_and_by_a_rename(tmp_path):
    file = tmp_path / "a" / "x.txt"
    for content in ("one", "two"):
        before = file.stat().st_ino if file.exists() else 0
        with new_file(file) as draft:
            draft.write_text(content)
            assert not file.exists() or file.read_text() == "one"
        assert file.read_text() == content and file.stat().st_ino != before  # an open reader keeps the old file
    with pytest.raises(KeyError), new_file(file) as draft:
        draft.write_text("three")
        raise KeyError
    assert file.read_text() == "two" and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("replace", [new_folder, replaced_folder])
def test_a_folder_appears_at_the_end(replace, tmp_path):
    folder = tmp_path / "a" / "folder"
    with pytest.raises(KeyError), replace(folder) as draft:
        (draft / "x").write_text("")
        raise KeyError
    assert list(folder.parent.iterdir()) == []
    with replace(folder) as draft:
        (draft / "x").write_text("one")
        assert not folder.exists()
    assert (folder / "x").read_text() == "one"
    with replace(folder) as draft:
        (draft / "y").write_text("two")
        assert (folder / "x").read_text() == "one"
    names = [file.name for file in folder.iterdir()]
    assert names == (["x"] if replace is new_folder else ["y"])  # of two writers of a new folder the first one wins
    assert list(folder.parent.iterdir()) == [folder]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / ".folder.left" / "new").mkdir(parents=True)
    with replaced_folder(tmp_path / "folder") as draft:
        (draft / "x").touch()
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_damaged_folder_or_link_is_removed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").touch()
    (tmp_path / "link").symlink_to(Path("nowhere"))
    for name in ("folder", "link", "absent"):
        remove_folder(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x").write_text("one")
    rename = Path.rename

    def fail(self, target):
        if self.name == "new":
            raise OSError("no")
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no"), replaced_folder(folder):
        patch.setattr(Path, "rename", fail)
    assert (folder / "x").read_text() == "one" and list(tmp_path.iterdir()) == [folder]


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    left = tmp_path / ".folder.left" / "previous"
    left.mkdir(parents=True)
    (left / "x").write_text("one")
    with pytest.raises(KeyError), replaced_folder(tmp_path / "folder"):
        raise KeyError
    assert (tmp_path / "folder" / "x").read_text() == "one"
