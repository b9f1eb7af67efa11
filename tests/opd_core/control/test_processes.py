from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from opd_core.control.processes import process_identity, signal_process, try_lock
from opd_core.errors import HomeError
from tests.waiting import wait_until


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Some other process, in a session of its own."""
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_lock_is_held_once_and_free_after_closing(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "run.lock"
    first = try_lock(path)
    assert first is not None
    assert try_lock(path) is None
    os.close(first)
    second = try_lock(path)
    assert second is not None
    os.close(second)
    assert path.exists()


def test_a_lock_lasts_as_long_as_the_child_it_was_passed_to(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "run.lock")
    assert lock is not None
    with subprocess.Popen(["sleep", "1000"], pass_fds=(lock,)) as child:
        os.close(lock)
        assert try_lock(tmp_path / "run.lock") is None
        child.kill()
    again = try_lock(tmp_path / "run.lock")
    assert again is not None
    os.close(again)


def test_a_lock_does_not_leak_into_other_children(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "run.lock")
    assert lock is not None
    with subprocess.Popen(["sleep", "1000"], close_fds=False) as child:
        os.close(lock)
        again = try_lock(tmp_path / "run.lock")
        assert again is not None
        os.close(again)
        child.kill()


def test_a_lock_that_cannot_be_made_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file where the folder should be")
    with pytest.raises(HomeError, match="cannot be made"):
        try_lock(tmp_path / "locks" / "run.lock")


def test_an_identity_stays_and_differs_between_processes(sleeper: subprocess.Popen[bytes]) -> None:
    assert process_identity(sleeper.pid) == process_identity(sleeper.pid) is not None
    assert process_identity(os.getpid()) != process_identity(sleeper.pid)


def test_a_zombie_has_no_identity(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    wait_until(lambda: process_identity(sleeper.pid) is None, 5)
    os.kill(sleeper.pid, 0)  # the number still answers: nobody has reaped it
    assert sleeper.returncode is None


def test_a_reused_number_is_never_signalled(sleeper: subprocess.Popen[bytes]) -> None:
    identity = process_identity(sleeper.pid)
    for stale in ("another-boot 1", f"{identity}0", "", None):
        assert not signal_process(sleeper.pid, stale, signal.SIGKILL)
    assert not signal_process(None, identity, signal.SIGKILL)
    assert sleeper.poll() is None
    assert signal_process(sleeper.pid, identity, signal.SIGTERM)
    assert sleeper.wait(5) == -signal.SIGTERM


def test_killing_takes_the_whole_group() -> None:
    script = "sleep 1000 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True) as shell:
        assert shell.stdout is not None
        child = int(shell.stdout.readline())
        assert signal_process(shell.pid, process_identity(shell.pid), signal.SIGKILL)
    wait_until(lambda: process_identity(child) is None, 5)
