"""Blind judging: what the judge is shown, what length is worth, and what stays when the judge cannot go on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from opd_core.errors import BudgetExceededError, TeacherStoppedError
from opd_core.guidance import JudgePair, Preference
from opd_core.intervals import wilson_interval
from opd_core.training.comparison_table import judged_rows, summary_text, table_rows
from opd_core.training.evaluator import Evaluation, SampleScore
from opd_core.training.judging import PROMPTS_PER_ASKING, judge_evaluations, judged_entry, length_controlled_win_rate
from opd_core.types import Rollout
from tests.opd_core.training.scripted_teacher import PRICE, ScriptedTeacher


def answers(texts: list[str]) -> Evaluation:
    """An evaluation whose answers are these, each as long as it has characters."""
    samples, rollouts = [], []
    for number, text in enumerate(texts):
        messages = ({"role": "user", "content": f"prompt {number}"},)
        ids = tuple(range(len(text)))
        samples.append(SampleScore(f"p{number}", f"prompt {number}", text, len(text), "stop", 0.0, None, None, None))
        rollouts.append(
            Rollout(f"r{number}", 0, f"p{number}", messages, (1,), text, ids, (0.0,) * len(ids), "stop", 0, 1, 9, 0, "")
        )
    return Evaluation(tuple(samples), tuple(rollouts))


def prefers(text: str) -> Callable[[JudgePair], Preference]:
    return lambda pair: "first" if pair.first == text else "second"


def judged(judge: ScriptedTeacher, good: int = 20, **changes: Any) -> dict[str, Any]:
    evaluations = {"base": answers(["bad"] * good), "new": answers(["fine"] * good)}
    found = judge_evaluations(judge, evaluations, "base", **changes)
    assert found is not None
    return found


def test_a_candidate_that_always_wins_is_better_and_what_it_cost_is_told() -> None:
    judge = ScriptedTeacher(prefer=prefers("fine"))
    found = judged(judge)
    entry = found["candidates"]["new"]
    assert (entry["wins"], entry["losses"], entry["pairs"], entry["verdict"]) == (20, 0, 20, "better")
    assert found["calls"] == 20 and found["cost_usd"] == pytest.approx(20 * PRICE) and found["note"] == ""
    assert "base" not in found["candidates"], "the reference is not judged against itself"


def test_equal_answers_are_ties_that_nobody_is_asked_about() -> None:
    judge = ScriptedTeacher(prefer=prefers("fine"))
    found = judge_evaluations(judge, {"base": answers(["same"] * 9), "new": answers(["same"] * 9)}, "base")
    assert found is not None and judge.calls == []
    entry = found["candidates"]["new"]
    assert entry["ties"] == 9 and entry["win_rate"] == 0.5 and entry["verdict"] == "no difference shown"


def test_a_budget_that_ends_keeps_what_was_judged_for_every_candidate_alike() -> None:
    def refuse(calls: int) -> None:
        if calls == 4 * PROMPTS_PER_ASKING:
            raise BudgetExceededError("The run has $0.00 left.", scope="run", left_pico=0, needed_pico=1)

    judge = ScriptedTeacher(prefer=prefers("fine"), before_call=refuse)
    texts = {name: answers([name] * 40) for name in ("base", "one", "two")}
    found = judge_evaluations(judge, texts, "base")
    assert found is not None and "again with a larger judge_budget_usd" in found["note"]
    assert "confirmed" not in found["note"] and "resume" not in found["note"]
    assert [found["candidates"][name]["pairs"] for name in ("one", "two")] == [2 * PROMPTS_PER_ASKING] * 2


@pytest.mark.parametrize("by_teacher", [True, False])
def test_a_stop_gives_nothing(by_teacher: bool) -> None:
    def stop(calls: int) -> None:
        if by_teacher:
            raise TeacherStoppedError("stopped")

    evaluations = {"base": answers(["bad"]), "new": answers(["fine"])}
    judge = ScriptedTeacher(before_call=stop)
    assert judge_evaluations(judge, evaluations, "base", should_stop=lambda: not by_teacher) is None


def test_replies_that_cannot_be_used_are_counted_and_left_out() -> None:
    class Silent(ScriptedTeacher):
        def judge(self, pairs: Any) -> Any:
            return [None for _ in pairs]

    entry = judged(Silent())["candidates"]["new"]
    assert entry["unusable"] == 20 and entry["pairs"] == 0 and entry["verdict"] is None
    assert judged_entry([])["win_rate"] is None


def test_at_equal_lengths_the_controlled_rate_is_the_plain_one_with_one_tie_added() -> None:
    found = length_controlled_win_rate([1.0] * 30 + [0.0] * 10, [0] * 40)
    assert found.mean == pytest.approx(30.5 / 41)
    low, high = wilson_interval(30, 40)[1:]
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.03)


def test_wins_that_come_with_length_alone_are_not_called_better() -> None:
    """Longer wins, shorter loses, more often longer: the plain rate is 75 %, at equal length nothing is left."""
    points, longer = [1.0] * 30 + [0.0] * 10, [50] * 30 + [-50] * 10
    found = length_controlled_win_rate(points, longer)
    assert found.low < 0.5 < found.high
    entry = judged_entry([(point, length, True) for point, length in zip(points, longer, strict=True)])
    assert entry["win_rate"] == 0.75 and entry["verdict"] == "no difference shown"


def test_a_good_answer_that_is_shorter_keeps_its_wins() -> None:
    found = length_controlled_win_rate([1.0] * 36 + [0.0] * 4, [-20] * 36 + [20] * 4)
    assert found.mean > 0.5


@pytest.mark.parametrize("length", [0, 3, -3])
def test_the_fit_stays_finite_when_one_side_wins_everywhere(length: int) -> None:
    found = length_controlled_win_rate([1.0] * 40, [length] * 40)
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in found) and found.low < found.mean
    if length == 0:
        assert found.low > 0.8


def test_without_a_check_or_a_local_teacher_the_judgement_decides_and_the_summary_says_so() -> None:
    evaluations = {"base": answers(["bad"] * 20), "new": answers(["fine"] * 20)}
    found = judged(ScriptedTeacher(prefer=prefers("fine")))
    rows = judged_rows(table_rows(evaluations, "base", "judgement", 0), found, "judgement")
    assert rows["new"]["verdict"] == "better" and rows["base"]["verdict"] is None and rows["base"]["judged"] is None
    text = summary_text(rows, "base", "judgement", 20, None)
    assert "The judge prefers new to base on 100.0 % of 20 prompts" in text and ": better." in text


def test_without_anything_to_go_by_no_candidate_is_called_better() -> None:
    evaluations = {"base": answers(["bad"] * 20), "new": answers(["fine"] * 20)}
    rows = judged_rows(table_rows(evaluations, "base", None, 0), None, None)
    assert rows["new"]["verdict"] is None
    assert "nothing here says which are better" in summary_text(rows, "base", None, 20, None)
