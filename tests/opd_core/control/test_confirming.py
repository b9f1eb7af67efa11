"""When a person must have said yes before money may be spent: the rule itself, with real prices."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from opd_core.comparison import Candidate, ComparisonSpec
from opd_core.control.confirming import UNASKED_USD, require_judge, require_raise, require_start
from opd_core.control.preflight import paid as paid_checks
from opd_core.control.preflight.checking import check
from opd_core.control.runs import Runs
from opd_core.errors import ConfirmationNeededError
from tests.model_folders import World
from tests.opd_core.teachers.claude_kit import KEY
from tests.server.records import make_row

PAID = {
    "teacher_kind": "claude",
    "method": "contrast",
    "teacher_system_prompt": None,
    "acknowledge_teacher_terms": True,
    "num_training_steps": 20,
    "max_budget_usd": 20.0,
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setattr(paid_checks, "utc_today", lambda: date(2026, 11, 23))
    return World(tmp_path)


def question(world: World, kind: Any = "distillation", **changes: Any) -> str | None:
    """What would be asked before a start; None when nothing is."""
    found = check(world.config(**(PAID | changes)), world.roots, world.settings)
    try:
        require_start(found, kind, world.settings)
    except ConfirmationNeededError as needed:
        return needed.question
    return None


def test_a_paid_budget_above_the_threshold_is_asked_about_with_model_budget_and_estimate(world: World) -> None:
    asked = question(world)
    assert asked is not None
    for part in ("claude-", "$20.00", "Expected: $", "dearest: $"):
        assert part in asked
    assert asked == question(world), "the same start asks the same question"
    assert "probe" in (question(world, "probe") or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"max_budget_usd": UNASKED_USD},
        {"confirmed": True},
        {"teacher_cache_only": True},
        {"teacher_kind": "local", "method": "kl", "teacher_system_prompt": "Be brief.", "max_budget_usd": 50.0},
    ],
    ids=["at the threshold", "confirmed", "from the cache alone", "free"],
)
def test_what_spends_little_or_nothing_or_is_agreed_is_not_asked_about(world: World, changes: dict[str, Any]) -> None:
    assert question(world, **changes) is None
    assert question(world, max_budget_usd=UNASKED_USD + 0.01) is not None


def test_a_start_that_was_not_agreed_to_leaves_nothing(world: World) -> None:
    runs = Runs(world.settings, world.roots)
    before = sorted(world.home.home.rglob("*"))
    with pytest.raises(ConfirmationNeededError) as refusal:
        runs.start(world.config(**PAID))
    assert refusal.value.question in str(refusal.value) and refusal.value.field == "confirmed"
    with pytest.raises(ConfirmationNeededError):
        runs.start_probe(world.config(**PAID))
    assert sorted(world.home.home.rglob("*")) == before and runs.list() == ([], None)


def test_a_judge_with_a_large_budget_is_asked_about() -> None:
    candidates = (Candidate(name="base"), Candidate(name="new", adapter_path="/a"))

    def spec(budget: float) -> ComparisonSpec:
        return ComparisonSpec(run_id="r", candidates=candidates, judge=True, judge_budget_usd=budget)

    require_judge(spec(UNASKED_USD), confirmed=False)
    require_judge(spec(9.0), confirmed=True)
    require_judge(ComparisonSpec(run_id="r", candidates=candidates), confirmed=False)
    with pytest.raises(ConfirmationNeededError, match=r"paid judge.*\$9\.00"):
        require_judge(spec(9.0), confirmed=False)


def test_a_budget_that_grows_is_asked_about_however_small_it_is() -> None:
    row = make_row(config={"max_budget_usd": 0.1})
    require_raise(row, 0.1, confirmed=False)
    require_raise(row, 0.2, confirmed=True)
    with pytest.raises(ConfirmationNeededError, match=r"from \$0\.10 to \$0\.20"):
        require_raise(row, 0.2, confirmed=False)
