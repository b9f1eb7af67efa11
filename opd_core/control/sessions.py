"""A session: one fine-tune and the distillation runs that go on from it, linked by `session_id`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from opd_core.adapter_files import AdapterInfo
from opd_core.config import RunConfig
from opd_core.control.adapters import look_at_adapter
from opd_core.errors import PathError
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.state.rows import RunRow
from opd_core.types import clean_text

# Chosen anew for each run, or said elsewhere.
UNTOLD_FIELDS = frozenset({"run_id", "session_id", "client_request_id", "confirmed", "acknowledge_teacher_terms"})


@dataclass(frozen=True)
class Session:
    """`sft_run` is the fine-tune's adapter, `None` when the runs began with the base model alone; newest run first."""

    session_id: str
    sft_run: AdapterInfo | None
    runs: tuple[RunRow, ...]


def sessions_of(rows: Iterable[RunRow], home: HomePaths, roots: Roots) -> tuple[Session, ...]:
    """Group distillation runs by session, in the order given; runs without one are left out."""
    groups: dict[str, list[RunRow]] = {}
    for row in rows:
        if row.session_id is not None and row.kind == "distillation":
            groups.setdefault(row.session_id, []).append(row)
    return tuple(Session(session_id, _fine_tune(runs, home, roots), tuple(runs)) for session_id, runs in groups.items())


def chosen_settings(row: RunRow) -> dict[str, object]:
    """What of a run's configuration is not a default: what tells the runs of a session apart."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in RunConfig.model_fields.items()}
    return {
        name: value
        for name, value in row.config.items()
        if name in defaults and name not in UNTOLD_FIELDS and value != _as_stored(defaults[name])
    }


def _as_stored(default: object) -> object:
    return list(default) if isinstance(default, tuple) else default


def _fine_tune(rows: list[RunRow], home: HomePaths, roots: Roots) -> AdapterInfo | None:
    """The adapter that the first run started from which no distillation made: the fine-tune, as its files tell it."""
    made = {row.final_adapter_path for row in rows}
    for row in sorted(rows, key=lambda row: row.number):
        path = row.config.get("student_adapter_path")
        if path is None or path in made or Path(path).is_relative_to(home.home / "checkpoints"):
            continue
        try:
            return look_at_adapter(roots.check(path, "student_adapter_path", "folder"), home, roots)
        except PathError as error:
            return AdapterInfo(Path(path), Path(path).name, problem=clean_text(str(error), 300), loads=False)
    return None
