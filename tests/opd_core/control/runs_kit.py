"""Runs whose preflight says what a test wants, a configuration for them, and ends without a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opd_core.comparison import ComparisonSpec
from opd_core.config import RunConfig, parse_config
from opd_core.control.preflight.checking import CheckedComparison, Preflight
from opd_core.model_files import ModelInfo
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.run_prompts import RunPrompts
from opd_core.settings import Settings
from opd_core.state.store import RunStore

DOLLAR = 10**12


class Check:
    """A preflight that accepts everything, or refuses when told to; remembers what it was asked."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.warnings: tuple[str, ...] = ()
        self.asked: list[RunConfig] = []

    def __call__(self, config: RunConfig, roots: Roots, settings: Settings) -> Preflight:
        self.asked.append(config)
        if self.refusal is not None:
            raise self.refusal
        resolved = config.model_copy(update={"method": "kl"})
        model = ModelInfo.__new__(ModelInfo)
        return Preflight(resolved, model, None, None, RunPrompts([], [], ()), self.warnings)


def check_adapter_paths(spec: ComparisonSpec, _: RunConfig, roots: Roots, settings: Settings) -> CheckedComparison:
    """Looks at the adapters' paths alone: these tests have no model and no prompts."""
    for candidate in spec.candidates:
        if candidate.adapter_path is not None:
            roots.check(candidate.adapter_path, "adapter_path", "folder")
    return CheckedComparison(spec, ("the month is nearly used up",) if spec.judge else ())


def config(**changes: Any) -> RunConfig:
    """A configuration of files that nobody looks for."""
    return parse_config({"base_model_path": "/models/tiny", "prompts_path": "/data/prompts.jsonl", **changes})


def files(folder: Path) -> list[str]:
    """The paths of all files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def end(store: RunStore, run_id: str, state: str = "interrupted", **columns: Any) -> None:
    """Let a queued run start and end without a worker."""
    epoch = store.claim(run_id)
    store.heartbeat(run_id, epoch, **columns)
    store.finish(run_id, state, "error", epoch=epoch, message="")  # type: ignore[arg-type]


def paid(**changes: Any) -> RunConfig:
    """The run `mine` with a paid teacher and five dollars."""
    return config(teacher_kind="claude", run_id="mine", max_budget_usd=5.0, confirmed=True, **changes)


def ledger_of(home: HomePaths) -> Ledger:
    """The home's ledger, with a month of a hundred dollars."""
    return Ledger(home.database, month_limit_pico=100 * DOLLAR)
