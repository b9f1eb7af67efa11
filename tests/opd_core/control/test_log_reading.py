"""Reading logs: from the end, in pieces, with numbers, never more than a little of a huge file in memory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.control import log_reading
from opd_core.control.log_reading import LogMode, LogPart, read_log
from opd_core.errors import ConfigError, StateError


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "run.log"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, mode: LogMode = "tail", lines: int = 200, **more: Any) -> LogPart:
    return read_log(path, mode, lines=lines, **more)


def shown(part: LogPart) -> list[tuple[int | None, str]]:
    return [(line.line, line.text) for line in part.lines]


def test_the_last_lines_come_with_their_numbers_in_the_order_of_the_log(tmp_path: Path) -> None:
    part = read(write(tmp_path, "".join(f"line {number}\n" for number in range(1, 1001))), lines=3)
    assert shown(part) == [(998, "line 998"), (999, "line 999"), (1000, "line 1000")]
    assert part.total_lines == 1000 and part.cursor is not None


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.text(alphabet="ab é\r", max_size=12), max_size=40),
    step=st.integers(1, 7),
    block=st.integers(13, 40),
    has_end=st.booleans(),
)
def test_going_back_by_the_cursor_gives_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], step: int, block: int, has_end: bool
) -> None:
    path = write(tmp_path_factory.mktemp("log"), "\n".join(lines) + ("\n" if has_end else ""))
    collected: list[tuple[int | None, str]] = []
    cursor: int | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_reading, "BLOCK_BYTES", block)
        while True:
            part = read(path, lines=step, before=cursor)
            collected = shown(part) + collected
            cursor = part.cursor
            if cursor is None or not part.lines:
                break
    stripped = [(at, line.rstrip("\r")) for at, line in enumerate(lines, start=1)]
    assert collected == [(at, line.replace("\r", "\\r")) for at, line in stripped if line.strip()]


def test_a_search_finds_plain_text_in_any_case_and_patterns_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path, "Loss 1.5\nother\nloss 2.5\nlost\n")
    assert shown(read(path, "grep", pattern="LOSS")) == [(1, "Loss 1.5"), (3, "loss 2.5")]
    assert shown(read(path, "grep", pattern=r"^los[st] ", is_regex=True)) == [(3, "loss 2.5")]
    assert shown(read(path, "grep", pattern="1.5")) == [(1, "Loss 1.5")]
    assert shown(read(path, "grep", pattern="1?5")) == []


def test_a_pattern_that_explodes_ends_in_time(tmp_path: Path) -> None:
    part = read(write(tmp_path, f"{'a' * 5000}!\nfine\n"), "grep", pattern=r"(a+)+$|fine", is_regex=True)
    assert (2, "fine") in shown(part) and part.timeouts == 1
    assert read(tmp_path / "run.log", "grep", pattern="fine").timeouts == 0


@pytest.mark.parametrize(
    ("mode", "more", "word"),
    [
        ("grep", {}, "needs a pattern"),
        ("tail", {"pattern": "x"}, "mode"),
        ("grep", {"pattern": "(", "is_regex": True}, "no expression"),
        ("grep", {"pattern": "(?:a{1000}){1000}", "is_regex": True}, "multiply to more than 10,000"),
    ],
)
def test_a_search_without_a_pattern_or_with_a_bad_one_is_refused(
    tmp_path: Path, mode: LogMode, more: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        read(write(tmp_path, "x\n"), mode, **more)


def test_the_summary_has_the_newest_troubles_and_the_end(tmp_path: Path) -> None:
    lines = ["loading", "Traceback (most recent call last):", "ValueError: bad", "0 errors so far", *["step"] * 30]
    part = read(write(tmp_path, "\n".join(lines)), "summary")
    assert [line.line for line in part.errors] == [2, 3]
    assert len(part.lines) == 10 and part.total_lines == 34


def test_hostile_lines_are_escaped_and_capped(tmp_path: Path) -> None:
    path = write(tmp_path, b"\x1b[31mred\x00\n\xff\xfe\n" + b"x" * 1_000_000 + b"\n" + "\u202eback\n".encode())
    texts = [text for _, text in shown(read(path))]
    assert texts[0] == "\\x1b[31mred\\x00" and texts[-1] == "\\u202eback"
    assert len(texts[2]) < 500 and texts[2].startswith("x" * 400)


def test_a_log_that_does_not_exist_yet_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path / "run.log") == LogPart(0, 0, (), (), None)
    assert read(write(tmp_path, "")).lines == ()


def test_a_log_that_something_else_stands_in_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "run.log").symlink_to(tmp_path / "secret")
    with pytest.raises(StateError, match=r"run\.log"):
        read(tmp_path / "run.log")
    (tmp_path / "run.log").unlink()
    os.mkfifo(tmp_path / "run.log")
    with pytest.raises(StateError, match=r"run\.log"):
        read(tmp_path / "run.log")


def test_a_huge_log_costs_little_memory_and_a_long_search_goes_on_by_its_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, b"needle\n" + (b"y" * 999 + b"\n") * 20_000)
    monkeypatch.setattr(log_reading, "LOOK_BACK_BYTES", 12_000_000)
    tracemalloc.start()
    first = read(path, "grep", pattern="needle")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000
    assert first.lines == () and first.ends_early and first.cursor is not None
    second = read(path, "grep", pattern="needle", before=first.cursor)
    assert shown(second) == [(1, "needle")] and second.cursor is None


def test_one_endless_line_costs_little_memory_and_is_shown_by_its_beginning(tmp_path: Path) -> None:
    path = write(tmp_path, b"start " + b"z" * 20_000_000)
    tracemalloc.start()
    part = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000
    (line,) = part.lines
    assert line.line == 1 and line.text.startswith("start z") and len(line.text) < 500


def test_a_log_too_long_to_count_has_lines_without_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reading, "COUNTED_BYTES", 10)
    part = read(write(tmp_path, "one line\nand another\n"))
    assert part.total_lines is None and shown(part) == [(None, "one line"), (None, "and another")]
