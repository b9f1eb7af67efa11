from __future__ import annotations

import math
import resource
import stat
from pathlib import Path

import pytest

from opd_core.state import jsonl
from opd_core.state.jsonl import JsonlFile, dump_line, parse_line, read_beginning


@pytest.fixture
def file(tmp_path: Path) -> JsonlFile:
    return JsonlFile(tmp_path / "metrics" / "run_train.jsonl")


def test_records_come_back_in_order(file: JsonlFile) -> None:
    file.append([{"step": 1, "text": "zwei\nZeilen"}, {"step": 2}])
    file.append([{"step": 3}])
    assert [record["step"] for record in file.read()] == [1, 2, 3]
    assert next(file.read())["text"] == "zwei\nZeilen"


def test_nothing_is_made_before_the_first_line(file: JsonlFile) -> None:
    assert list(file.read()) == []
    assert file.synced_size() == 0
    file.cut(0)
    assert not file.path.parent.exists()


def test_a_torn_last_line_is_skipped_and_does_not_spoil_the_next(file: JsonlFile) -> None:
    file.append([{"step": 1}])
    with file.path.open("ab") as raw:
        raw.write(b'{"step": 2, "kl_l')
    assert [record["step"] for record in file.read()] == [1]
    file.append([{"step": 3}])
    assert [record["step"] for record in file.read()] == [1, 3]


def test_cutting_returns_to_an_earlier_size(file: JsonlFile) -> None:
    file.append([{"step": 1}])
    size = file.synced_size()
    file.append([{"step": 2}])
    file.cut(size)
    assert [record["step"] for record in file.read()] == [1]
    file.cut(10_000)
    assert file.synced_size() == size


def test_what_json_has_no_word_for_becomes_null() -> None:
    line = dump_line({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}})
    assert line == '{"a": null, "b": [null, 1.5], "c": {"d": null}}'


def test_a_lone_surrogate_from_a_model_does_not_stop_the_run(file: JsonlFile) -> None:
    file.append([{"completion": "bad \ud83d half"}])
    assert len(list(file.read())) == 1


def test_files_are_private(file: JsonlFile) -> None:
    file.append([{"step": 1}])
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


def test_a_file_that_is_shorter_than_a_checkpoint_says_is_told_apart(file: JsonlFile) -> None:
    file.append([{"step": 1}])
    size = file.synced_size()
    file.append([{"step": 2}])
    assert file.cut(size) == 0 and file.synced_size() == size
    assert file.cut(size + 7) == 7 and file.synced_size() == size


def test_a_disk_that_fills_up_in_mid_line_leaves_none_of_it(file: JsonlFile) -> None:
    file.append([{"step": 1}])
    size = file.synced_size()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))
    try:
        with pytest.raises(OSError):
            file.append([{"step": 2, "text": "a long line"}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.synced_size() == size
    file.append([{"step": 2}])
    assert [record["step"] for record in file.read()] == [1, 2]


def test_a_line_is_a_record_or_nothing() -> None:
    assert parse_line(b'{"step": 1}\n') == {"step": 1}
    for line in (b"", b"\n", b'{"step": 1', b"[1]", b"7", b'{"a": "\xff"}', b"[" * 100_000):
        assert parse_line(line) is None, line[:20]


def test_the_beginning_of_a_file_ends_with_the_last_whole_line(file: JsonlFile) -> None:
    assert list(read_beginning(file.path, 1000)) == []
    file.append([{"step": 1}])
    one = file.synced_size()
    file.append([{"step": 2}, {"step": 3}])
    for size, steps in ((0, []), (one, [1]), (2 * one - 2, [1]), (2 * one, [1, 2]), (1000, [1, 2, 3])):
        assert [record["step"] for record in read_beginning(file.path, size)] == steps, size


def test_a_line_without_an_end_is_not_held(file: JsonlFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 100)
    file.append([{"step": 1}, {"text": "x" * 350}, {"step": 3}])
    assert [record["step"] for record in read_beginning(file.path, 1000)] == [1, 3]
