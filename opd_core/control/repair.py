"""`opd doctor --repair`: find what is left behind in a home, and mend what can be mended without guessing.

A run that a worker owns is left alone: everything of a run is looked at again, and mended, under that run's own lock.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from opd_core.control.home_checks import CHECKS, without_a_run
from opd_core.control.processes import try_lock
from opd_core.control.repair_place import Finding, Place
from opd_core.control.supervisor import Supervisor
from opd_core.errors import RunNotFoundError
from opd_core.paths import RUN_ID_PATTERN, HomePaths
from opd_core.state.database import Database
from opd_core.state.mending import no_new_runs
from opd_core.state.rows import RunRow
from opd_core.state.store import RunStore
from opd_core.types import LIVE_STATES

ALL_RUNS = 1_000_000
SERVER_LOG = "server"


class Repair:
    """What is wrong in one home. `look` makes nothing and changes nothing; `mend` changes only what it names."""

    def __init__(self, home: HomePaths) -> None:
        self._home, self._database = home, Database(home.database)
        self._store = RunStore(self._database)

    def look(self) -> list[Finding]:
        """Everything that is not as it should be, run by run; runs with a living worker are passed over."""
        rows = {row.run_id: row for row in self._store.list(limit=ALL_RUNS)}
        return [
            finding
            for run_id in sorted(rows.keys() | self._ids_on_disk())
            if not self._is_owned(run_id)
            for finding in self._of_run(run_id, rows.get(run_id))
        ]

    def mend(self) -> list[Finding]:
        """Mend what can be mended; returns what was found, in the words of before the mending.

        Raises:
            StoreError: the database is busy or damaged.
        """
        found = self.look()
        if any(finding.path == self._home.run_lock(finding.run_id) for finding in found):
            Supervisor(self._home, self._store).reconcile()
        for run_id in sorted({finding.run_id for finding in found if finding.mend is not None}):
            with self._held(run_id) as is_ours:
                if is_ours:
                    self._mend_run(run_id)
        return found

    def _mend_run(self, run_id: str) -> None:
        """One kind after the other, each looked for again: mending one may have mended or uncovered the next."""
        if self._row(run_id) is None:
            self._mend_orphan(run_id)
        place = self._place(run_id, self._row(run_id))
        for check in CHECKS:
            _apply(check(place))

    def _mend_orphan(self, run_id: str) -> None:
        """Move files aside while no start can make a run of that name, or record the run again."""
        with no_new_runs(self._database) as known:
            found = [] if run_id in known else list(without_a_run(self._place(run_id, None)))
            files = [finding for finding in found if finding.path.is_file()]
            _apply(files)
        _apply(finding for finding in found if finding not in files)

    def _of_run(self, run_id: str, row: RunRow | None) -> Iterator[Finding]:
        place = self._place(run_id, row)
        if row is not None and row.state in LIVE_STATES:
            yield Finding(
                run_id, self._home.run_lock(run_id), f"is free, though the run is {row.state}: its worker is dead",
                "record the run as interrupted, and charge the calls it left open", lambda: None,
            )  # fmt: skip
        yield from without_a_run(place)
        for check in CHECKS:
            yield from check(place)

    def _place(self, run_id: str, row: RunRow | None) -> Place:
        return Place(self._home, self._database, run_id, row)

    def _row(self, run_id: str) -> RunRow | None:
        try:
            return self._store.get(run_id)
        except RunNotFoundError:
            return None

    def _ids_on_disk(self) -> set[str]:
        """The runs that files speak of: configurations, logs and checkpoint folders."""
        names = {path.stem for path in _entries(self._home.home / "configs", "*.yaml")}
        names |= {path.name.split(".")[1] for path in _entries(self._home.home / "configs", ".*.yaml.*.tmp")}
        names |= {path.name.split(".")[0] for path in _entries(self._home.home / "logs", "*.log*")} - {SERVER_LOG}
        names |= {path.name for path in _entries(self._home.home / "checkpoints", "*") if path.is_dir()}
        return {name for name in names if RUN_ID_PATTERN.fullmatch(name)}

    def _is_owned(self, run_id: str) -> bool:
        """Whether a worker holds the run; a lock file is not made to find that out."""
        if not self._home.run_lock(run_id).exists():
            return False
        with self._held(run_id) as is_ours:
            return not is_ours

    @contextlib.contextmanager
    def _held(self, run_id: str) -> Iterator[bool]:
        lock = try_lock(self._home.run_lock(run_id))
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)


def _apply(findings: Iterable[Finding]) -> None:
    for finding in list(findings):
        if finding.mend is not None:
            finding.mend()


def _entries(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(pattern)) if folder.is_dir() else []
