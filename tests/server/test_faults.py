"""The log of unexpected errors stays within a size."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.paths import HomePaths, older_generation
from server import faults
from server.faults import record_fault


@pytest.fixture
def log(home: HomePaths) -> Path:
    home.prepare()
    return home.log("server")


def test_a_full_log_becomes_the_older_generation(home: HomePaths, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MAX_LOG_BYTES", 200)
    older_generation(log).write_text("long ago")
    assert record_fault(home, "first", KeyError("a" * 200)) == str(log)
    assert older_generation(log).read_text() == "long ago"
    for name in ("second", "third"):
        before = log.read_text()
        record_fault(home, name, KeyError("b" * 200))
        assert older_generation(log).read_text() == before
        assert name in log.read_text().splitlines()[0]
    assert {path.name for path in log.parent.iterdir()} == {"server.log", "server.log.1"}
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_log_with_room_is_gone_on_with(home: HomePaths, log: Path) -> None:
    for name in ("first", "second"):
        record_fault(home, name, KeyError(name))
    assert log.read_text().count("KeyError") == 2 and not older_generation(log).exists()
