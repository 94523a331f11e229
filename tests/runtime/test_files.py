"""Atomic writes, and errors that name the file."""

from __future__ import annotations

import errno
import os
import stat
import threading

import pytest
import torch

from pad_fast.errors import StoreError
from pad_fast.runtime import files, locks


def listing(folder):
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, function):
    target = tmp_path / "a.json"
    files.write_json(target, {"old": 1})

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, function, fail)
    with pytest.raises(StoreError, match=r"a\.json: No space left on device"):
        files.write_json(target, {"new": 2})
    monkeypatch.undo()
    assert files.read_json(target, "thing") == {"old": 1}
    assert listing(tmp_path) == ["a.json"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "a.bin", b"x")
    assert listing(tmp_path) == []


def test_folders_are_made_and_permissions_are_ordinary(tmp_path):
    path = files.write_text(tmp_path / "deep" / "er" / "text.txt", "größer\n")
    (tmp_path / "plain").write_text("x")
    assert path.read_text(encoding="utf-8") == "größer\n"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert listing(path.parent) == ["text.txt"]


def test_json_is_readable_by_people(tmp_path):
    path = files.write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": "é"})
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n") and '\n  "b": [' in text and "é" in text
    assert text.index('"b"') < text.index('"a"')


def test_torch_files_depend_on_their_values_only(tmp_path):
    value = [{"w": torch.arange(6.0).view(2, 3)}, torch.tensor(3)]
    one, two = files.write_torch(tmp_path / "one.pt", value), files.write_torch(tmp_path / "other-name.pt", value)
    assert one.read_bytes() == two.read_bytes()
    back = files.read_torch(one, "thing")
    assert torch.equal(back[0]["w"], value[0]["w"]) and torch.equal(back[1], value[1])


class Payload:
    def __reduce__(self):
        return os.mkdir, ("pickled-code-ran",)


def test_pickled_code_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(StoreError, match=r"replay buffer .*evil\.pt cannot be read"):
        files.read_torch(tmp_path / "evil.pt", "replay buffer")
    assert listing(tmp_path) == ["evil.pt"]


@pytest.mark.parametrize("content", [b"", b"not a tensor file", None])
def test_damaged_torch_files(tmp_path, content):
    path = files.write_torch(tmp_path / "a.pt", torch.arange(1000))
    path.write_bytes(path.read_bytes()[:700] if content is None else content)
    with pytest.raises(StoreError, match=r"order table .*a\.pt"):
        files.read_torch(path, "order table")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(StoreError, match=r"cannot read thing .*none\.pt: No such file"):
        files.read_torch(tmp_path / "none.pt", "thing")
    with pytest.raises(StoreError, match="cannot read thing"):
        files.read_json(tmp_path, "thing")
    (tmp_path / "half.json").write_text('{"a": [1,')
    with pytest.raises(StoreError, match=r"half\.json is not valid JSON"):
        files.read_json(tmp_path / "half.json", "thing")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match="not valid JSON"):
        files.read_json(tmp_path / "binary.json", "thing")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (KeyError("lr"), "x is damaged or no thing of pad_fast (no 'lr'); delete it"),
        (ValueError("odd"), "x is damaged or no thing of pad_fast (odd); delete it"),
        (UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"), "x is damaged or no thing of pad_fast ('utf-8' codec"),
        (RecursionError("deep"), "x is damaged or no thing of pad_fast (deep)"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "cannot read thing x: No such file"),
        (StoreError("x belongs to somebody else"), "x belongs to somebody else"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_goes_wrong_in_a_file_names_it(raised, said):
    with pytest.raises(StoreError) as caught, files.reading("x", "thing", way_out="delete it"):
        raise raised
    assert str(caught.value).startswith(said)


def test_what_no_file_can_cause_stays_what_it_is():
    for fault in (AssertionError, NameError, KeyboardInterrupt):
        with pytest.raises(fault), files.reading("x", "thing"):
            raise fault


def test_output_folders_are_proved_before_work(tmp_path, monkeypatch):
    assert files.require_writable(tmp_path / "a" / "b").is_dir()
    assert listing(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is not writable"):
        files.require_writable(tmp_path / "file" / "sub")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(StoreError, match="Read-only file system"):
        files.require_writable(tmp_path)


def test_a_lock_is_seen_without_being_taken(tmp_path):
    path = tmp_path / "a.lock"
    said: list[str] = []
    assert locks.is_locked(path) is None
    with locks.locked(path, waiting=lambda: said.append("waiting")):
        assert locks.is_locked(path) and locks.is_locked(path)
    assert locks.is_locked(path) is False and not said
    (tmp_path / "folder.lock").mkdir()
    with pytest.raises(StoreError, match=r"cannot lock .*folder\.lock"), locks.locked(tmp_path / "folder.lock"):
        pass


def test_who_finds_a_lock_taken_says_so_and_waits(tmp_path):
    path = tmp_path / "a.lock"
    inside: list[bool | None] = []

    def second() -> None:
        with locks.locked(path, waiting=found.set):
            inside.append(locks.is_locked(path))

    found = threading.Event()
    other = threading.Thread(target=second)
    with locks.locked(path):
        other.start()
        assert found.wait(10) and not inside
    other.join(10)
    assert inside == [True]
