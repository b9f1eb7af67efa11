"""Everything recorded about one run, gathered once: what its diagnosis and its report are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opd_core.state.events import Event
from opd_core.state.rows import Line, RunRow


@dataclass(frozen=True)
class SpendEntry:
    """What the teacher's texts of one kind (reference, guidance, lesson, judge) cost, by the run's own record."""

    kind: str
    texts: int
    cache_hits: int
    input_tokens: int
    output_tokens: int
    cost_usd: float


@dataclass(frozen=True)
class RunEvidence:
    """One run as recorded. `train` is a series of at most 512 lines, evenly thinned, the last one always there.

    `comparison` is the newest completed comparison of this run's adapters (its result file), if there is one.
    """

    row: RunRow
    train: Sequence[Line]
    evals: Sequence[Line]
    events: Sequence[Event] = ()
    comparison: dict[str, Any] | None = None
    spend: Sequence[SpendEntry] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration in its flat form."""
        return self.row.config

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one training metric where it was measured."""
        return numbers(self.train, name)

    def eval_series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one held-out metric where it was measured."""
        return numbers(self.evals, name)


def numbers(lines: Sequence[Line], name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric where a line has a number for it; flags count as 0 and 1."""
    return [(int(line["step"]), float(value)) for line in lines if isinstance(value := line.get(name), int | float)]
