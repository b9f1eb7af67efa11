"""Nothing is spent without a key, a named budget, a known price and the user's word on the terms."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from opd_core.comparison import Candidate, ComparisonSpec
from opd_core.control.preflight import paid as paid_checks
from opd_core.control.preflight.checking import Preflight, check, check_comparison
from opd_core.errors import BudgetFrozenError, ConfigError, OPDError, StalePricesError, UnknownPriceError
from opd_core.money.ledger import Ledger
from opd_core.settings import Settings
from tests.model_folders import World, edit_json, write_prompts

KEY = "sk-ant-canary-77"
DOLLAR = 10**12


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setattr(paid_checks, "utc_today", lambda: date(2026, 11, 23))
    return World(tmp_path)


def paid(**changes: Any) -> dict[str, Any]:
    fields = {"teacher_kind": "claude", "method": "contrast", "max_budget_usd": 5.0, "acknowledge_teacher_terms": True}
    return {**fields, "teacher_system_prompt": None, **changes}


def passed(world: World, settings: Settings | None = None, **changes: Any) -> Preflight:
    return check(world.config(**paid(**changes)), world.roots, settings or Settings(world.home))


def refusal(world: World, settings: Settings | None = None, **changes: Any) -> OPDError:
    with pytest.raises(OPDError) as caught:
        passed(world, settings, **changes)
    assert KEY not in str(caught.value)
    return caught.value


def test_a_good_configuration_names_its_teacher_and_loads_no_other_model(world: World) -> None:
    found = passed(world)
    assert (found.config.teacher_model_id, found.config.method) == ("claude-sonnet-5-5", "contrast")
    assert found.teacher is None and found.config.primary_metric is None
    assert passed(world, Settings(world.home, default_teacher="claude-haiku-5-5")).config.teacher_model_id == (
        "claude-haiku-5-5"
    )
    dated = "claude-opus-5-5-20261007"
    assert passed(world, teacher_model_id=dated).config.teacher_model_id == dated


def test_a_resolved_paid_configuration_passes_again_unchanged(world: World) -> None:
    first = passed(world).config
    assert check(first, world.roots, Settings(world.home)).config == first


@pytest.mark.parametrize("method", ["auto", "coach", "contrast", "sft"])
def test_the_methods_of_a_text_teacher_are_let_through(world: World, method: str) -> None:
    assert passed(world, method=method).config.method == method


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"acknowledge_teacher_terms": False}, ConfigError, "user must check"),
        ({"method": "kl"}, ConfigError, "kl needs teacher_kind 'local'"),
        ({"method": "span"}, ConfigError, "available: auto, coach, contrast, sft"),
        ({"max_budget_usd": 100.5}, ConfigError, "OPD_MAX_BUDGET_USD"),
        ({"max_budget_usd": 0.0}, ConfigError, "buys nothing"),
        ({"teacher_model_id": "claude-none-9"}, UnknownPriceError, "no price"),
        ({"primary_metric": "reverse_kl"}, ConfigError, "scores tokens"),
    ],
)
def test_one_problem_is_one_plain_error(world: World, changes: dict[str, Any], kind: type[OPDError], says: str) -> None:
    error = refusal(world, **changes)
    assert type(error) is kind and says in str(error) and "problems" not in str(error)


def test_without_a_key_nothing_starts_except_from_the_cache(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert "ANTHROPIC_API_KEY" in str(refusal(world)) and ".env" in str(refusal(world))
    assert passed(world, teacher_cache_only=True).config.teacher_cache_only
    (world.home.home / ".env").write_text(f"ANTHROPIC_API_KEY={KEY}\n")
    passed(world)


def test_a_budget_must_be_named_by_the_caller(world: World) -> None:
    fields = paid()
    del fields["max_budget_usd"]
    with pytest.raises(ConfigError, match="must name its budget"):
        check(world.config(**fields), world.roots, Settings(world.home))
    check(world.config(**fields, teacher_cache_only=True), world.roots, Settings(world.home))


def test_an_estimate_says_what_is_missing_instead_of_refusing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    config = world.config(teacher_kind="claude", method="sft")
    found = check(config, world.roots, Settings(world.home), is_estimate=True)
    needed = [warning for warning in found.warnings if warning.startswith("Needed for a start")]
    assert len(needed) == 3


def test_the_months_limit_bounds_a_budget_and_what_is_left_of_it_is_told(world: World) -> None:
    settings = Settings(world.home, monthly_budget_usd=6.0)
    assert "OPD_MONTHLY_BUDGET_USD" in str(refusal(world, settings, max_budget_usd=7.0))
    ledger = Ledger(world.home.database, month_limit_pico=6 * DOLLAR)
    ledger.open_budget("r", 5 * DOLLAR)
    call = ledger.reserve("r", "key", "m", "v", 2 * DOLLAR, "r:1")
    assert any("only $4.00 are left" in warning for warning in passed(world, settings).warnings)
    ledger.forfeit(call, "unpriced", freeze=True)
    frozen = refusal(world, settings)
    assert isinstance(frozen, BudgetFrozenError) and "opd unfreeze month:" in str(frozen)


def test_the_month_is_judged_by_the_limit_that_rules_and_not_by_this_servers_setting(world: World) -> None:
    settings = Settings(world.home, monthly_budget_usd=60.0)
    assert passed(world, settings, max_budget_usd=7.0).warnings == passed(world, max_budget_usd=7.0).warnings
    other = Ledger(world.home.database, month_limit_pico=6 * DOLLAR)
    other.open_budget("r", 5 * DOLLAR)
    other.release(other.reserve("r", "key", "m", "v", DOLLAR, "r:1"), "529")
    told = str(refusal(world, settings, max_budget_usd=7.0))
    assert "$6.00 (by the lowest OPD_MONTHLY_BUDGET_USD" in told and "opd set-month" in told
    other.set_month(8 * DOLLAR, "the deadline", "Ada")
    passed(world, settings, max_budget_usd=7.0)
    passed(world, Settings(world.home, monthly_budget_usd=6.0), max_budget_usd=7.0)


def test_old_prices_need_a_persons_confirmation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paid_checks, "utc_today", lambda: date(2027, 3, 1))
    assert isinstance(refusal(world), StalePricesError)
    passed(world, Settings(world.home, prices_confirmed_on=date(2027, 2, 1)))


def test_a_model_that_retires_is_told_and_a_retired_one_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = passed(world, teacher_model_id="claude-sonnet-4-5")
    assert any("retires on 2026-11-30" in warning for warning in soon.warnings)
    promised = passed(world, teacher_model_id="claude-opus-4-5")
    assert any("retires not before 2026-11-24" in warning for warning in promised.warnings)
    assert not any("retires" in warning for warning in passed(world, teacher_model_id="claude-sonnet-4-6").warnings)
    monkeypatch.setattr(paid_checks, "utc_today", lambda: date(2026, 12, 1))
    assert "is retired" in str(refusal(world, teacher_model_id="claude-sonnet-4-5"))


def test_a_student_with_a_thinking_mode_is_told(world: World) -> None:
    assert not any("thinking" in warning for warning in passed(world).warnings)
    edit_json(world.base / "tokenizer_config.json", chat_template="{% if enable_thinking %}")
    assert any("thinking mode" in warning for warning in passed(world).warnings)


def test_a_persons_token_rate_is_the_default_and_the_most(world: World) -> None:
    settings = Settings(world.home, rate_limit_tpm=50_000)
    assert passed(world, settings).config.teacher_rate_limit_tpm == 50_000
    assert passed(world, settings, teacher_rate_limit_tpm=20_000).config.teacher_rate_limit_tpm == 20_000
    capped = passed(world, settings, teacher_rate_limit_tpm=90_000)
    assert capped.config.teacher_rate_limit_tpm == 50_000
    assert any("lowered" in warning for warning in capped.warnings)


def test_references_in_the_file_give_a_task_score_also_with_a_text_teacher(world: World) -> None:
    write_prompts(world.prompts, reference="yes")
    assert passed(world).config.primary_metric == "task_score"


def test_a_judge_needs_a_key_and_a_budget_within_the_ceilings(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = check(world.config(), world.roots, Settings(world.home)).config
    spec = ComparisonSpec(run_id="r", candidates=(Candidate(name="base"),), judge=True, judge_budget_usd=2.0)
    assert check_comparison(spec, run, world.roots, Settings(world.home)).warnings == ()
    ending = spec.model_copy(update={"judge_model_id": "claude-opus-4-5"})
    (warning,) = check_comparison(ending, run, world.roots, Settings(world.home)).warnings
    assert "claude-opus-4-5 retires not before 2026-11-24" in warning
    with pytest.raises(ConfigError, match="judge_budget_usd 2 is above"):
        check_comparison(spec, run, world.roots, replace(Settings(world.home), max_budget_usd=1.0))
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
        check_comparison(spec, run, world.roots, Settings(world.home))
