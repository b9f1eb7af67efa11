"""Readers across a rotation: places, numbers and totals go on; nothing is lost, nothing comes twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from opd_core import safe_open
from opd_core.control.following import LogTail
from opd_core.control.kept_log import open_log
from opd_core.control.log_reading import read_log
from opd_core.control.logs import log_tail
from opd_core.errors import StateError
from opd_core.paths import older_generation
from opd_core.safe_open import UnsafeFileError
from tests.log_writer import LogWriter

HEADER = "[This log goes on"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.log"


def test_going_back_by_the_cursor_crosses_a_rotation_and_numbers_stay(path: Path) -> None:
    with LogWriter(path, 1000) as writer:
        for number in range(1, 101):
            writer.line(f"line {number}")
        first = read_log(path, "tail", lines=5)
        for number in range(101, 161):
            writer.line(f"line {number}")
    assert older_generation(path).exists()
    assert [line.text for line in first.lines] == [f"line {number}" for number in range(96, 101)]
    second = read_log(path, "tail", lines=5, before=first.cursor)
    assert [(line.line, line.text) for line in second.lines] == [(n, f"line {n}") for n in range(91, 96)]
    collected, cursor = list[str](), None
    while True:
        part = read_log(path, "tail", lines=7, before=cursor)
        collected = [line.text for line in part.lines] + collected
        cursor = part.cursor
        if cursor is None:
            break
    assert [text for text in collected if not text.startswith(HEADER)] == [f"line {n}" for n in range(1, 161)]
    assert part.dropped_bytes == 0 and part.total_lines == 161


def test_lines_that_were_dropped_are_said_to_be_gone_and_are_still_counted(path: Path) -> None:
    with LogWriter(path, 1000) as writer:
        for number in range(1, 101):
            writer.line(f"line {number}")
        early = read_log(path, "tail", lines=5)
        for number in range(101, 1001):
            writer.line(f"line {number}")
    gone = read_log(path, "tail", lines=5, before=early.cursor)
    assert gone.lines == () and gone.cursor is None and gone.dropped_bytes > (early.cursor or 0)
    now = read_log(path, "tail", lines=5)
    headers = now.lines[-1].line
    assert headers is not None and headers == now.total_lines and 1000 < headers < 1020
    assert now.total_bytes == gone.dropped_bytes + older_generation(path).stat().st_size + path.stat().st_size
    found = read_log(path, "grep", lines=200, pattern="line ")
    assert found.lines[0].text.startswith("line ") and found.cursor is None


def test_the_end_of_a_log_that_has_just_gone_on_comes_from_both_files(path: Path) -> None:
    with LogWriter(path, 1000) as writer:
        writer.line("the reason")
        writer.line("x" * 980)
        writer.line("the last word")
    assert path.read_text().count("\n") == 2
    lines = log_tail(path)
    assert lines[0] == "the reason" and lines[-1] == "the last word"


@pytest.mark.parametrize("every", [1, 7, 60])
def test_the_live_feed_neither_loses_nor_repeats_a_line_around_rotations(path: Path, every: int) -> None:
    tail, told = LogTail(path, from_start=True), list[str]()
    with LogWriter(path, 1000) as writer:
        for number in range(300):
            writer.line(f"line {number}")
            if number % 3 == 0:
                writer.print("half a ")
                if number % every == 0:
                    told += [line.text for line in tail.new_lines()]
                writer.print("line\n")
            if number % every == 0:
                told += [line.text for line in tail.new_lines()]
    told += [line.text for line in tail.new_lines()]
    expected = [text for n in range(300) for text in (f"line {n}", *(["half a line"] if n % 3 == 0 else []))]
    assert [text for text in told if not text.startswith(HEADER)] == expected
    assert sum(text.startswith(HEADER) for text in told) > 2
    assert tail.new_lines() == []


def test_the_live_feed_says_how_much_it_missed_when_both_files_are_new_to_it(path: Path) -> None:
    with LogWriter(path, 1000) as writer:
        writer.line("known")
        tail = LogTail(path, from_start=False)
        for number in range(400):
            writer.line(f"line {number}")
    lines = tail.new_lines()
    kept = open_log(path)
    with kept:
        assert lines[0].text == f"[{lines[0].end_byte - 6} bytes of the log are not shown here]"
        assert lines[-1].text == "line 399" and lines[-1].end_byte == kept.bytes_before + kept.size
    shown = [int(line.text.split()[1]) for line in lines[1:] if line.text.startswith("line ")]
    assert shown == list(range(shown[0], 400))


def test_a_rotation_between_the_two_openings_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a generation would be missing in the middle, or be there twice."""
    opened = list[Path]()
    with LogWriter(path, 1000) as writer:
        for number in range(150):
            writer.line(f"line {number}")

        def open_own(file: Path) -> object:
            if len(opened) in (1, 3):
                writer.line("y" * 990)
            opened.append(file)
            return safe_open.open_own(file)

        monkeypatch.setattr("opd_core.control.kept_log.open_own", open_own)
        with open_log(path) as log:
            text = log.read(log.size).decode()
    assert len(opened) == 6
    assert [line[:1] for line in text.splitlines()] == ["[", "y", "[", "y"]


def test_a_worker_that_died_between_its_two_steps_leaves_a_log_that_can_be_read(path: Path) -> None:
    older_generation(path).write_text("one\ntwo\n")
    assert [(line.line, line.text) for line in read_log(path, "tail", lines=9).lines] == [(1, "one"), (2, "two")]
    path.write_text("three\n")
    assert [(line.line, line.text) for line in read_log(path, "tail", lines=1).lines] == [(3, "three")]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    secret = path.with_name("secret")
    secret.write_text("secret")
    path.symlink_to(secret)


@pytest.mark.parametrize("put", [fifo, link, Path.mkdir])
@pytest.mark.parametrize("is_older", [False, True])
def test_what_stands_in_the_place_of_a_log_is_named_and_hangs_nobody(
    path: Path, put: Callable[[Path], None], is_older: bool
) -> None:
    if is_older:
        path.write_text("newer\n")
    put(older_generation(path) if is_older else path)
    with pytest.raises(UnsafeFileError):
        open_log(path)
    with pytest.raises(StateError, match=r"run\.log cannot be read"):
        read_log(path, "tail", lines=5)
    (told,) = log_tail(path)
    assert "cannot be read" in told and "secret" not in told
    assert LogTail(path, from_start=True).new_lines() == []
