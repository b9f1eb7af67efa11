"""Dollars before they are spent: what the ledger would reserve, what is stored already, what the budget covers."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from opd_core.control import preflight_paid
from opd_core.control.estimate import Estimate, estimate
from opd_core.control.estimate_paid import MethodCost, PaidEstimate, example_order, prompt_uses
from opd_core.control.preflight import check
from opd_core.guidance import Templates
from opd_core.message_params import body_bytes, message_params, reply_token_limit
from opd_core.money.ledger import Ledger
from opd_core.money.pricing import PriceTable, prompt_upper_bound, reservation_pico
from opd_core.settings import Settings
from opd_core.teachers.coach import EXAMPLE_ROUNDS, MAX_EXAMPLE_CHARACTERS
from opd_core.training.step import batch_for_step
from tests.endpoint import Endpoint
from tests.model_folders import World
from tests.opd_core.teachers.claude_kit import KEY, Kit

TODAY = date(2026, 11, 23)
DOLLAR = 10**12


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setattr(preflight_paid, "utc_today", lambda: TODAY)
    return World(tmp_path)


def fields(**changes: Any) -> dict[str, Any]:
    small = {"num_training_steps": 20, "batch_size": 4, "num_rollouts_per_prompt": 2, "rollout_max_tokens": 32}
    terms = {"teacher_kind": "claude", "max_budget_usd": 5.0, "acknowledge_teacher_terms": True}
    return {**small, **terms, "teacher_system_prompt": None, "method": "contrast", **changes}


def of(world: World, settings: Settings | None = None, **changes: Any) -> Estimate:
    config = world.config(**fields(**changes))
    return estimate(config, None, roots=world.roots, settings=settings or Settings(world.home))


def paid(world: World, settings: Settings | None = None, **changes: Any) -> PaidEstimate:
    found = of(world, settings, **changes).paid
    assert found is not None
    return found


def cost(found: PaidEstimate, method: str, level: str | None = None) -> MethodCost:
    return next(cost for cost in found.methods if (cost.method, cost.guidance_level) == (method, level))


def test_the_worst_case_is_the_sum_of_the_reservations_the_ledger_makes(world: World) -> None:
    found = paid(world)
    prompts = check(world.config(**fields()), world.roots, Settings(world.home)).prompts
    ledger, limit = Ledger(world.home.database, month_limit_pico=100 * DOLLAR), reply_token_limit(32)
    ledger.open_budget("r", 5 * DOLLAR)
    prices = PriceTable.load()
    for number, example in enumerate([*prompts.train, *prompts.held_out]):
        size = body_bytes(message_params(Templates().reference(example.messages), found.model, limit))
        price = prices.price_for(found.model, prompt_upper_bound(size), TODAY)
        amount = reservation_pico(price, size, limit)
        ledger.reserve("r", f"key {number}", found.model, prices.version, amount, "r:1")
    assert found.chosen.worst_pico == ledger.totals("r").reserved_pico
    assert found.chosen.calls == 60 and 0 < found.pays_usd < found.pays_at_most_usd


def test_a_local_teachers_estimate_has_no_bill(world: World) -> None:
    found = estimate(world.config(), None, roots=world.roots, settings=Settings(world.home))
    assert found.paid is None and (found.teacher_calls, found.cost_usd) == (0, 0.0)


def test_calls_of_each_method_follow_from_the_configuration(world: World) -> None:
    found = paid(world, check={"kind": "regex", "pattern": "x"})
    train = of(world).train_prompts
    assert cost(found, "coach", "examples").calls == 4
    assert cost(found, "coach", "lesson").calls == 20
    assert cost(found, "coach", "critique").calls == 20 * 4 * 2
    assert cost(found, "coach", "reference").calls == 20 * 4 * 2 + train
    assert cost(found, "contrast").calls == cost(found, "sft", "reference").calls == train
    assert cost(found, "sft").calls == 20 * 4 * 2 + train // 2


def test_the_estimate_of_auto_is_the_probe_and_then_a_method(world: World) -> None:
    found = paid(world, method="auto")
    probe, contrast = cost(found, "probe"), cost(found, "contrast")
    assert found.chosen.calls == probe.calls + contrast.calls
    assert found.chosen.worst_pico == probe.worst_pico + max(
        method.worst_pico for method in found.methods if method.method in ("coach", "contrast")
    )


def test_a_probe_without_a_check_pays_a_judge_too(world: World) -> None:
    held_out = of(world).held_out_prompts
    judged = cost(paid(world, guidance_level="examples", method="auto"), "probe", "examples")
    checked = paid(world, guidance_level="examples", method="auto", check={"kind": "regex", "pattern": "x"})
    assert judged.calls - cost(checked, "probe", "examples").calls == 2 * held_out


def test_batches_halve_references_and_nothing_else(world: World) -> None:
    found = paid(world, teacher_batch_api=True)
    contrast, critique = cost(found, "contrast"), cost(found, "coach", "lesson")
    assert contrast.batch_expected_usd == pytest.approx(contrast.expected_usd / 2, rel=1e-6)
    assert contrast.batch_worst_usd == pytest.approx(contrast.worst_usd / 2, rel=1e-6)
    assert found.pays_usd == contrast.batch_expected_usd
    assert critique.batch_expected_usd is not None and critique.batch_expected_usd > critique.expected_usd / 2


def test_stored_replies_are_found_by_the_key_the_teacher_makes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with Endpoint() as endpoint:
        settings = Settings(world.home, teacher_base_url=endpoint.url + "/")
        before = paid(world, settings)
        example = check(world.config(**fields()), world.roots, settings).prompts.train[0]
        kit = Kit(world.home.home, endpoint)
        kit.teacher(max_tokens=reply_token_limit(32)).references([example.messages])
    found = paid(world, settings)
    assert (before.chosen.cache_hits, found.chosen.cache_hits) == (0, 1)
    assert found.chosen.calls == before.chosen.calls - 1
    assert found.chosen.worst_pico < before.chosen.worst_pico


def test_the_coverage_sentence_tells_what_the_budget_is_good_for(world: World) -> None:
    worst, expected = paid(world).pays_at_most_usd, paid(world).pays_usd
    assert "even in the worst case" in paid(world, max_budget_usd=worst + 0.01).coverage
    assert "In the worst case it ends after" in paid(world, max_budget_usd=(worst + expected) / 2).coverage
    tight = paid(world, max_budget_usd=expected / 2)
    assert "50 %" in tight.coverage and tight.uncovered_usd == pytest.approx(expected / 2)
    assert "largest single call" in paid(world, max_budget_usd=0.0001).coverage
    assert "the run will fail" in paid(world, teacher_cache_only=True).coverage


def test_what_is_left_of_the_month_bounds_the_budget(world: World) -> None:
    expected = paid(world).pays_usd
    found = paid(world, Settings(world.home, monthly_budget_usd=5.0))
    assert found.month_left_usd == 5.0 and found.uncovered_usd == 0.0
    ledger = Ledger(world.home.database, month_limit_pico=5 * DOLLAR)
    ledger.open_budget("r", 5 * DOLLAR)
    ledger.reserve("r", "key", "m", "v", 5 * DOLLAR, "r:1")
    assert paid(world, Settings(world.home, monthly_budget_usd=5.0)).uncovered_usd == pytest.approx(expected)


def test_prompts_are_counted_as_the_run_draws_them(world: World) -> None:
    config = world.config(**fields(num_training_steps=17))
    examples = check(config, world.roots, Settings(world.home)).prompts.train
    drawn: dict[int, int] = {}
    for step in range(1, 18):
        for example in batch_for_step(examples, step, config.batch_size, config.seed):
            drawn[examples.index(example)] = drawn.get(examples.index(example), 0) + 1
    assert prompt_uses(len(examples), config) == drawn


def test_examples_are_counted_as_the_coach_chooses_them(world: World) -> None:
    from opd_core.control import estimate_paid
    from opd_core.teachers.coach import choose_examples
    from opd_core.training.references import References

    class Asked(References):
        def __init__(self) -> None:
            self.prompts: list[str] = []

        def texts(self, examples: Any) -> list[str | None]:
            self.prompts += [example.prompt for example in examples]
            return ["yes"] * len(examples)

    config = world.config(**fields())
    examples = check(config, world.roots, Settings(world.home)).prompts.train
    asked = Asked()
    choose_examples(config, asked, examples)
    assert [example.prompt for example in example_order(config, examples)[:4]] == asked.prompts
    assert (*(EXAMPLE_ROUNDS, MAX_EXAMPLE_CHARACTERS),) == (
        estimate_paid.EXAMPLE_ROUNDS,
        estimate_paid.MAX_EXAMPLE_CHARACTERS,
    )


def test_long_prompts_cost_more_and_text_beyond_ascii_is_counted_by_its_bytes(world: World) -> None:
    before = paid(world).chosen.worst_pico
    lines = [json.dumps({"prompt": f"{number} " + "ü" * 50}, ensure_ascii=False) for number in range(60)]
    world.prompts.write_text("\n".join(lines), encoding="utf-8")
    assert paid(world).chosen.worst_pico > before
