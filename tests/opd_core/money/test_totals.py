from __future__ import annotations

import contextlib
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from opd_core.errors import LedgerDamagedError
from opd_core.money.ledger import Ledger
from opd_core.state.migrations import MIGRATIONS, MONEY_GUARDS, migrate
from opd_core.state.store import RunStore
from tests.opd_core.money.books import Clock, query, reserve


def test_an_earlier_database_gets_the_ledger_and_keeps_its_runs(path: Path, clock: Clock) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, path, MIGRATIONS[:1])
        connection.execute(
            "INSERT INTO runs (run_id, kind, state, config, created_at, queue_order, total_steps) "
            "VALUES ('old', 'distillation', 'stopped', '{}', 'then', 1, 10)"
        )
        connection.execute("INSERT INTO events (run_id, at, kind, message) VALUES ('old', 'then', 'state', 'stopped')")
    ledger = Ledger(path, month_limit_pico=1500, clock=clock)
    ledger.open_budget("old", 1000)
    ledger.settle(reserve(ledger, "a", run_id="old"), 40, "{}", None, "reply")
    assert RunStore(path).get("old").state == "stopped"
    assert query(path, "SELECT message FROM events") == [("stopped",)]
    assert ledger.totals("old").spent_pico == 40
    backup = path.with_name("opd.db.v1.bak")
    assert query(backup, "SELECT run_id FROM runs") == [("old",)]
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE budgets SET limit_pico = 10000",
        "UPDATE budgets SET frozen = 1",
        "DELETE FROM budgets",
        "INSERT INTO budgets (scope, limit_pico, frozen) VALUES ('mine', 5, 0)",
        "INSERT OR REPLACE INTO budgets (scope, limit_pico, frozen) VALUES ('run', 1000, 0)",
        "UPDATE budget_changes SET limit_pico = 10000",
        "DELETE FROM budget_changes",
        "INSERT OR REPLACE INTO budget_changes VALUES (1, 'run', 'now', 10000, 0, 'because', 'me')",
        "UPDATE calls SET actual_pico = 1 WHERE state = 'settled'",
        "UPDATE calls SET state = 'open', actual_pico = NULL, closed_at = NULL WHERE state = 'settled'",
        "UPDATE calls SET reserved_pico = 1 WHERE state = 'open'",
        "UPDATE calls SET owner = 'me' WHERE state = 'open'",
        "UPDATE calls SET request_key = 'other' WHERE state = 'open'",
        "UPDATE calls SET state = 'released', actual_pico = 5, closed_at = 'now' WHERE state = 'open'",
        "UPDATE calls SET state = 'forfeited', actual_pico = 5, closed_at = 'now' WHERE state = 'open'",
        "UPDATE calls SET state = 'released', actual_pico = 0 WHERE state = 'open'",
        "DELETE FROM calls",
        "INSERT OR REPLACE INTO calls SELECT * FROM calls WHERE state = 'open'",
        "INSERT OR IGNORE INTO calls SELECT 9, 'x', run_id, month, 'x', 1, 'w', 'm', 'v', 0, NULL, 'open', 100000, "
        "NULL, NULL, NULL, NULL, 'now', NULL FROM calls WHERE state = 'open'",
        "INSERT INTO calls SELECT 9, 'x', run_id, month, 'x', 1, 'w', 'm', 'v', 0, NULL, 'released', 10, 0, "
        "NULL, NULL, NULL, 'now', 'now' FROM calls WHERE state = 'open'",
        "UPDATE responses SET body = 'mine'",
        "DELETE FROM responses",
        "INSERT OR REPLACE INTO responses SELECT request_key, call_id, 'mine', sha256, stored_at FROM responses",
        "INSERT INTO responses SELECT request_key, call_id, 'mine', 'x', 'now' FROM calls WHERE state = 'open'",
        "UPDATE adjustments SET delta_pico = -20",
        "DELETE FROM adjustments",
        "INSERT OR REPLACE INTO adjustments SELECT number, call_id, at, -20, why, by_whom FROM adjustments",
    ],
)
def test_the_database_itself_refuses_what_would_falsify_it(ledger: Ledger, path: Path, statement: str) -> None:
    call_id = reserve(ledger, "a")
    ledger.settle(call_id, 60, "{}", None, "reply")
    ledger.adjust(call_id, -10, "rebate", "Ada")
    reserve(ledger, "b")
    tables = ("budgets", "budget_changes", "calls", "responses", "adjustments")
    before = [query(path, f"SELECT * FROM {table}") for table in tables]
    with pytest.raises(sqlite3.IntegrityError):
        query(path, statement)
    assert [query(path, f"SELECT * FROM {table}") for table in tables] == before


@pytest.mark.parametrize(
    ("tampering", "difference"),
    [
        ("UPDATE budgets SET spent_pico = 0", r"\$0\.00 spent by its total, but \$0\.00000000006 by its calls"),
        ("UPDATE budgets SET reserved_pico = 0", "reserved by its total"),
        ("UPDATE budgets SET reserved_pico = 99 WHERE scope LIKE 'month:%'", "month:2026-11 has .* reserved"),
        ("DROP TRIGGER calls_admission", "guard calls_admission was removed"),
        ("DROP INDEX calls_one_open_per_key", "guard calls_one_open_per_key was removed"),
        (
            "DROP TRIGGER calls_admission; CREATE TRIGGER calls_admission BEFORE INSERT ON calls BEGIN SELECT 1; END",
            "guard calls_admission",
        ),
        ("{calls_stay} DELETE FROM calls WHERE state = 'settled'", "spent by its total, but"),
        ("{calls_close_once} UPDATE calls SET actual_pico = 1 WHERE state = 'settled'", "spent by its total"),
        ("{budgets_change} UPDATE budgets SET limit_pico = 9999", r"the limit.*is 9999, but"),
        ("{budgets_change} UPDATE budgets SET frozen = 1 WHERE scope = 'run'", "the freeze of run is 1, but 0"),
        ("{budgets_stay} DELETE FROM budgets WHERE scope = 'run'", "run has .* by its total, but"),
        ("{responses_never_change} UPDATE responses SET request_key = 'mine'", "belongs to no settled call"),
    ],
)
def test_direct_tampering_is_found_before_the_next_cent(
    ledger: Ledger, path: Path, clock: Clock, tampering: str, difference: str
) -> None:
    call_id = reserve(ledger, "a")
    ledger.settle(call_id, 60, "{}", None, "reply")
    reserve(ledger, "b")
    guard, _, statement = tampering.rpartition("} ")
    name = guard.removeprefix("{")
    put_back = [sql for sql in MONEY_GUARDS if sql.startswith(f"CREATE TRIGGER {name} ")] if name else []
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for step in [*([f"DROP TRIGGER {name}"] if name else []), *statement.split("; ", 1), *put_back]:
            connection.execute(step)
    rows = "SELECT (SELECT COUNT(*) FROM calls), (SELECT COUNT(*) FROM adjustments), COUNT(*) FROM budget_changes"
    before = query(path, rows)
    uses: tuple[Callable[[Ledger], object], ...] = (
        lambda fresh: fresh.rebuild_check(),
        lambda fresh: reserve(fresh, "c"),
        lambda fresh: fresh.open_budget("next", 5),
        lambda fresh: fresh.adjust(call_id, 1, "the bill says so", "Ada"),
        lambda fresh: fresh.raise_limit("run", 2000),
        lambda fresh: fresh.unfreeze("run", "seen", "Ada"),
    )
    for use in uses:
        with pytest.raises(LedgerDamagedError, match=rf"{difference}.*a person must"):
            use(Ledger(path, month_limit_pico=1500, clock=clock))
    assert query(path, rows) == before


def test_a_sound_ledger_passes_and_a_missing_one_is_not_made(ledger: Ledger, tmp_path: Path) -> None:
    ledger.settle(reserve(ledger, "a"), 60, "{}", None, "reply")
    ledger.rebuild_check()
    nowhere = tmp_path / "none.db"
    Ledger(nowhere, month_limit_pico=5).rebuild_check()
    assert not nowhere.exists()
