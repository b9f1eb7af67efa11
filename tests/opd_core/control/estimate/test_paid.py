"""Dollars before they are spent: what the ledger would reserve, what is stored already, what the budget covers."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from opd_core.control.estimate.costs import MethodCost, PaidEstimate
from opd_core.control.estimate.estimating import Estimate, estimate
from opd_core.control.preflight import paid as paid_checks
from opd_core.control.preflight.checking import check
from opd_core.guidance import Templates
from opd_core.message_params import body_bytes, message_params, reply_token_limit
from opd_core.money.ledger import Ledger
from opd_core.money.pricing import PriceTable, prompt_upper_bound, reservation_pico
from opd_core.settings import Settings
from tests.endpoint import Endpoint
from tests.model_folders import World, tokenizer, write_json
from tests.opd_core.teachers.claude_kit import KEY, Kit

TODAY = date(2026, 11, 23)
DOLLAR = 10**12


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setattr(paid_checks, "utc_today", lambda: TODAY)
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
    contrast, sft, edits = cost(found, "contrast"), cost(found, "sft", "reference"), cost(found, "sft")
    assert contrast.batch_expected_usd == pytest.approx(contrast.expected_usd / 2, rel=1e-6)
    assert contrast.batch_worst_usd == pytest.approx(contrast.worst_usd / 2, rel=1e-6)
    assert found.pays_usd == contrast.batch_expected_usd and contrast.batch_expected_usd is not None
    assert sft.batch_expected_usd == contrast.batch_expected_usd
    assert edits.batch_expected_usd is not None and edits.batch_expected_usd > edits.expected_usd / 2
    others = [method for method in found.methods if method.method in ("coach", "probe")]
    assert others and all(method.batch_expected_usd is None for method in others)  # those are needed at once


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
    found = paid(world)
    worst, expected = found.pays_at_most_usd, found.pays_usd
    assert "covers the run even in the worst case" in paid(world, max_budget_usd=worst + 0.01).coverage
    assert "covers what is expected, but not" in paid(world, max_budget_usd=(worst + expected) / 2).coverage
    tight = paid(world, max_budget_usd=expected / 2)
    assert "of the calls that are expected" in tight.coverage
    assert tight.uncovered_usd == pytest.approx(expected / 2)


def test_a_failed_batch_entry_is_asked_again_so_batches_do_not_lower_the_worst_case(world: World) -> None:
    found = paid(world, teacher_batch_api=True)
    assert found.chosen.batch_worst_usd is not None
    assert found.pays_at_most_usd == found.chosen.worst_usd > found.chosen.batch_worst_usd
    assert any("asked again at the full price" in note for note in found.notes)


def test_the_worst_case_follows_the_longest_token_of_the_students_own_tokenizer(world: World) -> None:
    before = paid(world)
    longer = tokenizer(vocab={"a": 0, "b": 1, "x" * 40: 2}, merges=[])
    write_json(world.base / "tokenizer.json", longer)
    after = paid(world)
    assert cost(after, "contrast") == cost(before, "contrast") and not after.chosen.sends_answers
    tokens, price = 20 * 4 * 2 * 32, PriceTable.load().price_for(after.model, 1, TODAY)
    grown = tokens * (41 - 16) * price.cache_write_5m_pico  # before, "<s> " was the longest: 7 + 1 + 7 + 1 bytes
    assert cost(after, "coach", "critique").worst_pico - cost(before, "coach", "critique").worst_pico == grown
    assert cost(after, "coach", "critique").expected_usd == cost(before, "coach", "critique").expected_usd
    assert any("32 of its longest tokens (41 bytes each" in note for note in after.notes)


def test_a_tokenizer_that_cannot_be_measured_is_taken_at_a_stated_bound(world: World) -> None:
    before = paid(world)
    write_json(world.base / "tokenizer.json", {**tokenizer(), "decoder": {"type": "Unheard"}})
    after = paid(world)
    assert cost(after, "sft").worst_pico > 2 * cost(before, "sft").worst_pico
    assert any("1792 bytes each in a request, assumed" in note for note in after.notes)


def test_what_is_left_of_the_month_bounds_the_budget(world: World) -> None:
    expected = paid(world).pays_usd
    found = paid(world, Settings(world.home, monthly_budget_usd=5.0))
    assert found.month_left_usd == 5.0 and found.uncovered_usd == 0.0
    ledger = Ledger(world.home.database, month_limit_pico=5 * DOLLAR)
    ledger.open_budget("r", 5 * DOLLAR)
    ledger.reserve("r", "key", "m", "v", 5 * DOLLAR, "r:1")
    assert paid(world, Settings(world.home, monthly_budget_usd=5.0)).uncovered_usd == pytest.approx(expected)


def test_long_prompts_cost_more_and_text_beyond_ascii_is_counted_by_its_bytes(world: World) -> None:
    before = paid(world).chosen.worst_pico
    lines = [json.dumps({"prompt": f"{number} " + "ü" * 50}, ensure_ascii=False) for number in range(60)]
    world.prompts.write_text("\n".join(lines), encoding="utf-8")
    assert paid(world).chosen.worst_pico > before
