"""A worker's log stays within its size: two generations, whole lines, private files."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from opd_core.control.supervisor import Supervisor
from opd_core.paths import HomePaths, older_generation
from opd_core.state.run_log import RunLog, came_before
from opd_core.state.store import RunStore
from tests.log_writer import ROOT, LogWriter
from tests.waiting import wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.log"


def generations(path: Path) -> list[list[str]]:
    return [file.read_text().splitlines() for file in (older_generation(path), path) if file.exists()]


@pytest.mark.parametrize(("beyond", "files"), [(-1, 1), (0, 1), (1, 2)])
def test_a_line_that_fits_to_the_byte_stays_and_one_byte_more_begins_a_new_generation(
    path: Path, beyond: int, files: int
) -> None:
    with LogWriter(path, 100) as writer:
        writer.line("a" * 49)
        writer.line("é" * 24 + "b" * (1 + beyond))
    assert len(generations(path)) == files


@pytest.mark.parametrize(("size", "files"), [(99, 1), (100, 1), (101, 2)])
def test_what_libraries_print_is_kept_within_the_same_size(path: Path, size: int, files: int) -> None:
    with LogWriter(path, 100) as writer:
        writer.print("x" * size)
        writer.keep_within()
    assert len(generations(path)) == files


def test_a_log_without_end_keeps_its_newest_lines_in_two_private_files_and_tears_none(path: Path) -> None:
    with LogWriter(path, 1000) as writer:
        for number in range(300):
            writer.line(f"line {number} of the log")
            writer.print(f"and {number} of a library\n")
    assert sorted(file.name for file in path.parent.iterdir()) == ["run.log", "run.log.1"]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 and file.stat().st_size <= 1030
               for file in path.parent.iterdir())  # fmt: skip
    older, newer = generations(path)
    told = [line for line in (*older[1:], *newer[1:])]
    expected = [text for number in range(300) for text in (f"line {number} of the log", f"and {number} of a library")]
    assert told == expected[-len(told) :] and len(told) > 40


def test_each_generation_says_exactly_how_much_came_before_it(path: Path) -> None:
    with LogWriter(path, 500) as writer:
        seen, everything = path.stat().st_ino, ""
        for number in range(400):
            writer.line(f"line {number}")
            if path.stat().st_ino != seen:
                seen, everything = path.stat().st_ino, everything + older_generation(path).read_text()
                assert came_before(path.read_bytes()) == (len(everything), everything.count("\n"))
    assert everything.count("This log goes on") > 1


def test_a_run_that_is_taken_up_again_appends(path: Path) -> None:
    for number in range(2):
        with LogWriter(path, 1000) as writer:
            writer.line(f"worker {number}")
    assert generations(path) == [["worker 0", "worker 1"]]


def test_output_that_does_not_go_to_the_log_is_left_alone(path: Path, tmp_path: Path) -> None:
    """A worker under a test or a debugger, or one whose log somebody has put another file in place of."""
    with LogWriter(path, 100) as writer:
        writer.line("mine")
        path.rename(tmp_path / "moved")
        path.write_text("theirs\n")
        writer.line("a" * 200)
    assert path.read_text() == "theirs\n" and not older_generation(path).exists()
    assert (tmp_path / "moved").read_text().endswith("a\n")


def test_a_log_that_cannot_be_turned_over_goes_on_as_it_is(path: Path) -> None:
    (older_generation(path) / "in the way").mkdir(parents=True)
    with LogWriter(path, 100) as writer:
        for number in range(10):
            writer.line(f"line {number} of the log")
    assert len(path.read_text().splitlines()) == 10


def test_in_this_process_a_line_goes_to_the_error_output(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunLog(path, 1).write_line("told")
    assert capsys.readouterr().err == "told\n" and not path.exists()


SHOUTING = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from opd_core import worker
from opd_core.paths import older_generation
from opd_core.state import run_log
from opd_core.worker.jobs import JobEnd

run_log.WATCH_SECONDS = 0.001
run_log.RunLog.__init__.__defaults__ = (1000,)

def shout(context):
    older, seen = older_generation(context.home.log("run")), set()
    while len(seen) < 3:
        for _ in range(20):
            print("a library that prints without end")
        if older.exists():
            seen.add(older.read_bytes()[:80])
    return JobEnd("completed", "finished", "It was heard.")

sys.exit(worker.main(jobs={{"distillation": shout}}))
"""


def test_a_worker_keeps_within_its_size_what_its_libraries_print(home: HomePaths) -> None:
    home.prepare()
    store = RunStore(home.database)
    store.create("run", "distillation", {}, total_steps=1)
    Supervisor(home, store, (sys.executable, "-P", "-c", SHOUTING)).start_next_queued()
    wait_until(lambda: store.get("run").state == "completed", 60)
    log = home.log("run")
    assert {file.name for file in log.parent.iterdir()} == {"run.log", "run.log.1"}
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in log.parent.iterdir())
    assert came_before(log.read_bytes())[0] > 0
