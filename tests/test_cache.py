"""The cache folder: where it is, files that appear complete or not at all, and none that is trusted unchecked."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path

import pytest

from q8core import cache
from q8core.cache import cache_folder, cached_path, new_file, read_record, write_record

KEY = {"cpu": "a", "threads": 2}


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    everything = {"Q8BERT_CACHE": "/var/q8", "XDG_CACHE_HOME": "/xdg"}
    assert cache_folder(everything) == Path("/var/q8")
    assert cache_folder({**everything, "Q8BERT_CACHE": ""}) == Path("/xdg/q8bert")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == Path("/home/ada/.cache/q8bert")
    assert cache_folder({}) == Path("/home/ada/.cache/q8bert")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(OSError, match="set Q8BERT_CACHE"):
        cache_folder({})


def test_the_tests_do_not_use_the_folder_of_the_user(cache_of_this_run: Path) -> None:
    assert cache_folder() == cache_of_this_run


def test_a_file_appears_complete_with_the_permissions_of_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    before = os.umask(0o027)
    try:
        with new_file(path) as file:
            file.write(b"all of it")
            assert not path.exists()
    finally:
        os.umask(before)
    assert path.read_bytes() == b"all of it"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path) -> None:
    def write() -> None:
        with new_file(tmp_path / "file") as file:
            file.write(b"half of it")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("hard_links", [True, False])
def test_of_two_writers_both_succeed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hard_links: bool) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    if not hard_links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "file"
    with new_file(path) as slow:
        slow.write(b"slow")
        with new_file(path) as fast:
            fast.write(b"fast")
    assert path.read_bytes() == (b"fast" if hard_links else b"slow")
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_is_found_again_by_its_key_alone(empty_cache: Path) -> None:
    assert read_record("times", KEY) is None
    write_record("times", KEY, {"native": {"16": 1.5}})
    assert read_record("times", dict(reversed(KEY.items()))) == {"native": {"16": 1.5}}
    assert read_record("times", {**KEY, "threads": 3}) is None
    assert read_record("other", KEY) is None


@pytest.mark.parametrize("damage", ["altered", "truncated", "foreign", "other key", "no JSON", "empty"])
def test_a_damaged_record_is_not_trusted(empty_cache: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    write_record("times", KEY, 1.5)
    path = cached_path("times", KEY, "json")
    if damage == "altered":
        path.write_text(path.read_text().replace("1.5", "2.5"))
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "foreign":
        path.write_text(json.dumps([1, 2]))
    elif damage == "other key":
        write_record("times", {**KEY, "cpu": "b"}, 1.5)
        shutil.copy(cached_path("times", {**KEY, "cpu": "b"}, "json"), path)
    else:
        path.write_bytes(b"" if damage == "empty" else b"\xff\x00")
    with caplog.at_level(logging.WARNING, "q8core.cache"):
        assert read_record("times", KEY) is None
    assert "not trusted" in caplog.text
    write_record("times", KEY, 3.5)  # made again
    assert read_record("times", KEY) == 3.5


def test_the_folder_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = time.time()

    def make(name: str, age: float) -> None:
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (now - age, now - age))

    for age in range(1, 6):
        make(f"{age}.packed", age * 60)
    make("killed.part", 30 * 3600)
    make("at work.part", 60)
    make("not ours.txt", 30 * 3600)
    monkeypatch.setattr(cache, "_MOST_BYTES", 350)
    with new_file(tmp_path / "new.packed") as file:
        file.write(bytes(100))
    kept = {"new.packed", "1.packed", "2.packed", "at work.part", "not ours.txt"}
    assert {path.name for path in tmp_path.iterdir()} == kept
