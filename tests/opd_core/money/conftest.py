from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.money.ledger import Ledger
from tests.opd_core.money.books import Clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "opd.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(path: Path, clock: Clock) -> Ledger:
    """A run "run" may spend 1000, the install 1500 a month."""
    made = Ledger(path, month_limit_pico=1500, clock=clock)
    made.open_budget("run", 1000)
    return made
