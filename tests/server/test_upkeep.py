"""A server makes the rows of its home true by itself, and a person can end a run that does not stop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from opd_core.control import supervisor
from opd_core.errors import RunNotFoundError
from opd_core.paths import HomePaths
from opd_core.state.store import RunStore
from opd_core.types import END_STATES
from server.cli import main
from server.upkeep import tend, tend_soon
from server.use_cases import UseCases
from tests.opd_core.control.scripted_worker import COMMAND, Orders
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SERVE = (sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); from server.cli import main;"
         "sys.exit(main(sys.argv[1:]))", "serve")  # fmt: skip


@pytest.fixture
def store(home: HomePaths) -> RunStore:
    home.prepare()
    return RunStore(home.database)


@contextmanager
def serving(home: HomePaths, *options: str) -> Iterator[None]:
    """A server that nobody asks for anything."""
    environment = os.environ | {"OPD_HOME": str(home.home)}
    with subprocess.Popen(
        [*SERVE, *options], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as server:
        try:
            yield
        finally:
            server.terminate()


@pytest.mark.parametrize("options", [(), ("--http", "--port", "0")], ids=["stdio", "http"])
def test_a_server_that_is_never_asked_records_the_dead_and_starts_the_next(
    home: HomePaths, store: RunStore, options: tuple[str, ...]
) -> None:
    store.create("dead", "distillation", {}, total_steps=3)
    store.claim("dead")
    store.create("next", "distillation", {}, total_steps=3)
    with serving(home, *options):
        wait_until(lambda: store.get("dead").state == "interrupted", 60)
        wait_until(lambda: store.get("next").state in END_STATES, 60)  # at once: it has no configuration
    assert store.get("next").epoch == 1


class Cases:
    """Use cases that can only be asked for a status."""

    def __init__(self, home: HomePaths, error: Exception) -> None:
        self.home, self.error, self.asked = home, error, 0

    def status(self, run_id: str | None) -> None:
        self.asked += 1
        raise self.error


def test_a_look_that_fails_is_logged_and_ends_nothing(home: HomePaths, store: RunStore) -> None:
    store.create("run", "distillation", {}, total_steps=3)
    cases = Cases(home, ZeroDivisionError("unforeseen"))
    tend_soon(cast(UseCases, cases), 0.0).join(10)
    assert cases.asked == 1
    assert "ZeroDivisionError: unforeseen" in home.log("server").read_text(encoding="utf-8")


def test_a_home_without_runs_is_no_failure_and_a_missing_one_is_not_made(home: HomePaths) -> None:
    cases = Cases(home, RunNotFoundError("There are no runs yet."))
    tend(cast(UseCases, cases))
    assert cases.asked == 0 and not home.home.exists()
    home.prepare()
    home.database.touch()
    tend(cast(UseCases, cases))
    assert cases.asked == 1 and not home.log("server").exists()


def test_a_person_can_kill_a_run_that_does_not_stop(
    home: HomePaths, store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(supervisor, "SAVE_SECONDS", 0.1)
    store.create("deaf", "distillation", {}, total_steps=3)
    orders = Orders(home, "deaf")
    orders.send("deaf")
    supervisor.Supervisor(home, store, COMMAND).start_next_queued()
    wait_until(lambda: "deaf now" in home.log("deaf").read_text(encoding="utf-8"), 20)
    assert main(["stop", "deaf"]) == 1
    assert "opd stop deaf --force" in capsys.readouterr().out and store.get("deaf").state == "stopping"
    assert main(["stop", "deaf", "--force"]) == 0
    assert "stopped at step 0" in capsys.readouterr().out
    assert "Killed: it did not stop" in store.events("deaf")[-1].message
    assert main(["stop", "deaf"]) == 0
    assert "asked to stop" not in capsys.readouterr().out
    orders.close()
