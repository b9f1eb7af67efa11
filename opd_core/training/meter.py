"""What a text teacher has cost a run so far, over restarts, as figures of a metrics line."""

from __future__ import annotations

from opd_core.training.teaching import TeacherStats, TextTeacher

Figures = dict[str, float | int | None]


class TeacherMeter:
    """Adds the counts of this process to those of the processes before it.

    The counts before come from the checkpoint. What was paid comes from the ledger, which knows also what was spent
    between that checkpoint and the end of its process.

    Args:
        teacher: None: everything is zero.
    """

    def __init__(self, teacher: TextTeacher | None) -> None:
        self._teacher = teacher
        self._before: Figures = {}
        self._last = TeacherStats()

    def resume(self, totals: Figures) -> None:
        """Go on from the totals that a checkpoint holds."""
        self._before = dict(totals)

    def totals(self) -> Figures:
        """Since the run began."""
        now = self._now()
        counts: Figures = {
            "teacher_api_calls": now.calls,
            "teacher_cache_hits": now.cache_hits,
            "teacher_unusable_replies": now.refused + now.truncated + now.malformed,
            "cumulative_cost_usd": now.cost_usd,
        }
        before: Figures = dict(self._before)
        if now.cost_before_usd is not None:
            before["cumulative_cost_usd"] = now.cost_before_usd
        return {name: (value or 0) + (before.get(name) or 0) for name, value in counts.items()}

    def step_figures(self) -> Figures:
        """The totals, and the mean latency of the calls since this was last asked."""
        now, last = self._now(), self._last
        calls = now.calls - last.calls
        spent = now.latency_ms_mean * now.calls - last.latency_ms_mean * last.calls
        self._last = now
        return {**self.totals(), "teacher_api_latency_ms": spent / calls if calls else None}

    def _now(self) -> TeacherStats:
        return TeacherStats() if self._teacher is None else self._teacher.stats()
