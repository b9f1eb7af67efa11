"""What passes between a run and whoever watches it: the calls it makes, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from opd_core.types import EndReason, Rollout


class RunObserver(Protocol):
    """Who records what the trainer does. Calls come often and must return quickly."""

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None: ...

    def rollouts(self, split: Literal["train", "val"], step: int, rollouts: Sequence[Rollout]) -> None: ...

    def train_metrics(self, line: dict[str, object]) -> None: ...

    def eval_metrics(self, line: dict[str, object]) -> None: ...

    def checkpoint(self, step: int, path: Path, is_best: bool) -> None: ...

    def log(self, message: str) -> None: ...

    def should_stop(self) -> bool: ...

    def positions(self) -> dict[str, int]: ...

    def cut_back(self, positions: dict[str, int]) -> None: ...


@dataclass(frozen=True)
class TrainingOutcome:
    """How a run ended; `message` is one sentence for people.

    Attributes:
        method, guidance_level: what the run trained with, also when `auto` chose it.
        probe: what the probe of `auto` found (`probe.ProbeReport.as_record`), if there was one.
    """

    end_reason: EndReason
    final_step: int
    best_step: int
    best_value: float | None
    primary_metric: str
    adapter_path: Path
    message: str
    method: str = "kl"
    guidance_level: str | None = None
    probe: dict[str, Any] | None = None
