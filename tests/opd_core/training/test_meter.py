"""What a teacher has cost a run over restarts."""

from __future__ import annotations

from opd_core.training.meter import TeacherMeter
from opd_core.training.teaching import TeacherStats
from tests.opd_core.training.scripted_teacher import ScriptedTeacher


class Paid(ScriptedTeacher):
    """A teacher of whom the counts are told."""

    now = TeacherStats()

    def stats(self) -> TeacherStats:
        return self.now


def test_counts_go_on_from_the_checkpoint_and_money_from_the_ledger() -> None:
    teacher = Paid()
    meter = TeacherMeter(teacher)
    meter.resume({"teacher_api_calls": 10, "teacher_cache_hits": 2, "cumulative_cost_usd": 1.0})
    teacher.now = TeacherStats(calls=3, cost_usd=0.25, cost_before_usd=1.5)
    figures = meter.totals()
    assert (figures["teacher_api_calls"], figures["teacher_cache_hits"]) == (13, 2)
    assert figures["cumulative_cost_usd"] == 1.75, "half a dollar was spent after the checkpoint"
    teacher.now = TeacherStats(calls=3, cost_usd=0.25)
    assert meter.totals()["cumulative_cost_usd"] == 1.25, "no ledger: as the checkpoint has it"
