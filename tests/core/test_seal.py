"""Tests of seals (checksums kept with JSON files, folders and lines of logs): damage is noticed and named."""

import errno
import json
import os
from pathlib import Path

import pytest
import runs

from jaxdistill.core import seal
from jaxdistill.core.errors import DamageError

CONTENT = {"step": 3, "row": {"accuracy": 0.1 + 0.2, "nll": float("nan")}, "names": ["ä", "b"], "pair": (1, 2)}


@pytest.fixture
def file(tmp_path):
    seal.write(tmp_path / "deep" / "x.json", CONTENT)
    return tmp_path / "deep" / "x.json"


def test_what_was_written_comes_back(file):
    read = seal.read(file, {"step": int, "row": dict, "names": list})
    assert str(read) == str({**CONTENT, "pair": [1, 2]})
    assert os.listdir(file.parent) == ["x.json"], "no draft is left"


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(file):
    whole, content = file.read_bytes(), str(seal.read(file, {}))
    noticed = 0
    for place in range(len(whole)):
        for bit in (1, 4, 64):
            file.write_bytes(whole)
            runs.flip(file, place, bit)
            try:
                read = seal.read(file, {})
            except DamageError as error:
                assert str(file) in str(error)
                noticed += 1
            else:  # the flip was in the key "seal" or in white space
                assert str({key: read[key] for key in ("step", "row", "names", "pair")}) == content
    assert noticed > 2.8 * len(whole)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged (Expecting value"),
        ("[1]", "is damaged (it is not a JSON object)"),
        ("[" * 100_000, "is damaged (maximum recursion"),
        ('{"step": "3"}', "is damaged ('step' is missing or of another type)"),
        ('{"step": true}', "is damaged ('step' is missing or of another type)"),
        ("{}", "is damaged ('step' is missing or of another type)"),
        ('{"step": 3, "seal": "0"}', "has changed since it was written"),
    ],
)
def test_what_is_no_such_file_is_named(text, said, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DamageError) as error:
        seal.read(tmp_path / "x.json", {"step": int})
    assert said in str(error.value) and str(error.value).startswith(str(tmp_path / "x.json"))


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DamageError, match="is damaged"):
        seal.read(tmp_path / "x.json", {})


def test_a_dangling_link_is_not_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        seal.read(tmp_path / "x.json", {})
    (tmp_path / "x.json").symlink_to(tmp_path / "gone")
    with pytest.raises(DamageError, match="is a link to a file that does not exist"):
        seal.read(tmp_path / "x.json", {})


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EMFILE, errno.EIO, errno.EACCES])
def test_a_failing_disk_is_no_damage(number, tmp_path, monkeypatch):
    seal.write(tmp_path / "x.json", {"step": 3})

    def fail(*args, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fail)
        with pytest.raises(OSError) as error:
            seal.read(tmp_path / "x.json", {})
    assert error.value.errno == number
    assert seal.read(tmp_path / "x.json", {"step": int}) == {"step": 3}


def test_a_link_that_leads_to_itself_is_damage(tmp_path):
    (tmp_path / "x.json").symlink_to(tmp_path / "x.json")
    with pytest.raises(DamageError, match="is a link that leads to itself"):
        seal.read(tmp_path / "x.json", {})


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(DamageError, match=r"x\.json is a pipe, a socket or a device"):
        seal.read(tmp_path / "x.json", {})


def test_types_of_the_elements_are_checked(tmp_path):
    seal.write(tmp_path / "x.json", {"rows": [{"a": 1}], "names": {"a": "b"}})
    seal.read(tmp_path / "x.json", {"rows": list[dict], "names": dict[str, str]})
    seal.write(tmp_path / "mixed.json", {"rows": [{}, "x"], "names": {"a": "b", "c": 1}})
    for key, kind in (("rows", list[dict]), ("names", dict[str, str])):
        with pytest.raises(DamageError, match="is missing or of another type"):
            seal.read(tmp_path / "mixed.json", {key: kind})
    for types in ({"rows": list[str]}, {"rows": dict[str, dict]}, {"names": dict[str, int]}, {"names": list[str]}):
        with pytest.raises(DamageError, match="is missing or of another type"):
            seal.read(tmp_path / "x.json", types)


def test_sealing_one_file_again_does_not_vouch_for_the_others(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    seal.seal_folder(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("changed")
    seal.seal_again(tmp_path / "a.txt")
    with pytest.raises(DamageError, match=r"b\.txt has changed"):
        seal.check_folder(tmp_path)


def test_a_file_of_an_earlier_version_has_no_seal(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"step": 3}))
    assert seal.read(tmp_path / "x.json", {"step": int}) == {"step": 3}


def test_a_data_file_is_sealed_beside_it(tmp_path):
    file = tmp_path / "7.jsonl"
    file.write_text("text")
    with pytest.raises(FileNotFoundError):
        seal.check_file(file, {"part": 7})
    seal.seal_file(file, {"part": 7})
    seal.check_file(file, {"part": 7})
    seal.check_file(file, {"part": 7, "newer": 1})  # a key that an earlier version did not write
    with pytest.raises(DamageError, match=r"7\.jsonl belongs to something else \(part differs\)"):
        seal.check_file(file, {"part": 8})
    runs.flip(file, 2)
    with pytest.raises(DamageError, match=r"7\.jsonl has changed"):
        seal.check_file(file, {"part": 7})
    file.unlink()
    with pytest.raises(DamageError, match=r"7\.jsonl is missing"):
        seal.check_file(file, {"part": 7})


@pytest.mark.parametrize("before", [(), ("a.txt",)])
def test_a_file_that_must_be_listed_is_refused_if_it_was_added(tmp_path, before):
    for name in before:
        (tmp_path / name).write_text(name)
    seal.seal_folder(tmp_path)
    seal.check_in_folder(tmp_path / "more.txt", listed=True)  # no error, because this file does not exist yet
    (tmp_path / "more.txt").write_text("more")
    with pytest.raises(DamageError, match=r"more\.txt was added after the folder was sealed"):
        seal.check_in_folder(tmp_path / "more.txt", listed=True)


def test_a_sealed_folder_may_get_more_files(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    seal.check_in_folder(tmp_path / "a.txt")  # no error, because the folder has no seal yet
    seal.seal_folder(tmp_path)
    (tmp_path / "b.txt").write_text("b")
    seal.check_in_folder(tmp_path / "a.txt", tmp_path / "b.txt")
    runs.flip(tmp_path / "a.txt", 0)
    with pytest.raises(DamageError, match=r"a\.txt has changed"):
        seal.check_in_folder(tmp_path / "b.txt", tmp_path / "a.txt")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DamageError, match=r"a\.txt is missing"):
        seal.check_in_folder(tmp_path / "a.txt")


@pytest.mark.parametrize("damage", ["{", '{"files": {"a.txt": 3}}', '{"files": {}}'])
def test_a_damaged_or_unsigned_seal_of_a_folder_is_no_missing_one(tmp_path, damage):
    (tmp_path / "a.txt").write_text("a")
    seal.seal_folder(tmp_path)
    (tmp_path / seal.FOLDER_SEAL).write_text(damage)
    for read in (lambda: seal.check_in_folder(tmp_path / "a.txt"), lambda: seal.read_digests(tmp_path)):
        with pytest.raises(DamageError, match=r"is damaged|has no seal"):
            read()


def test_files_of_folders_in_a_sealed_folder_are_sealed(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text("mean")
    seal.seal_folder(tmp_path)
    (tmp_path / "1_Pooling/config.json").write_text("last")
    with pytest.raises(DamageError, match=r"1_Pooling/config\.json has changed"):
        seal.check_folder(tmp_path)


def test_a_seal_that_was_removed_is_missed_where_it_is_required(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"step": 3}))
    with pytest.raises(DamageError, match=r"x\.json has no seal"):
        seal.read(tmp_path / "x.json", {}, required=True)
    (tmp_path / seal.FOLDER_SEAL).write_text(json.dumps({"files": {}}))
    with pytest.raises(DamageError, match=r"seal\.json has no seal"):
        seal.check_folder(tmp_path)


def test_every_key_is_sealed(tmp_path):
    content = {"step": 3, "seconds": 1.5, "metrics": {"nll": 0.1}, "arrays": {"x": [[2], "float32", "0f"]}, "": None}
    file = tmp_path / "x.json"
    seal.write(file, content)
    sealed = json.loads(file.read_text())
    for key in content:
        for wrong in ({**sealed, key: "other"}, {name: x for name, x in sealed.items() if name != key}):
            file.write_text(json.dumps(wrong))
            with pytest.raises(DamageError, match="has changed since it was written"):
                seal.read(file, {})


def test_a_line_of_a_log_is_sealed_by_itself():
    content = {"step": 3, "loss": 0.25, "terms/kd": None}
    line = seal.sealed_line(content)
    assert seal.open_line(line) == content and json.loads(line)["step"] == 3
    assert seal.open_line('{"step": 3}') == {"step": 3}  # earlier versions wrote no checksum
    for place in range(len(line)):
        changed = line[:place] + chr(ord(line[place]) ^ 1) + line[place + 1 :]
        try:
            found = seal.open_line(changed)
        except (DamageError, ValueError):
            continue
        assert {key: found.get(key) for key in content} == content  # the flip was in the name of the checksum
    with pytest.raises(ValueError, match="no JSON object"):
        seal.open_line("[3]")


def test_a_line_that_is_nested_too_deeply_is_no_line():
    with pytest.raises(ValueError, match="nested too deeply"):
        seal.open_line("[" * 100_000)
