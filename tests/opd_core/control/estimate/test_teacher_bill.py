"""Whatever prompts and the student's answers hold, the ledger reserves no more than the estimate's worst."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_core.config import RunConfig
from opd_core.control.estimate.answer_bytes import body_bytes_of_text
from opd_core.control.estimate.teacher_bill import Bill, Biller
from opd_core.guidance import JudgePair, TeacherRequest, Templates
from opd_core.message_params import body_bytes, message_params, reply_token_limit
from opd_core.money.pricing import PriceTable, prompt_upper_bound, reservation_pico
from opd_core.paths import HomePaths
from opd_core.settings import Settings
from opd_core.types import FinishReason, Message, Rollout

TODAY = date(2026, 11, 23)
TOKENS = ["a", " the", "\n\n", '\\\\"', "<|im_end|>", "\x00", "\x7f", "日本", "é", "🙂", "\u2028", "\ufffd"]
TOKEN_BYTES = max(map(body_bytes_of_text, TOKENS))
MAX_TOKENS = 8
RULE = "Antworte höflich."

turns = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant"]),
        st.text(max_size=30) | st.text(st.characters(), max_size=30),  # the second: lone surrogates too
    ),
    min_size=1,
    max_size=3,
)
answers = st.lists(st.sampled_from(TOKENS), max_size=MAX_TOKENS).map("".join)
ends: st.SearchStrategy[FinishReason] = st.sampled_from(["stop", "length"])
model_names = st.sampled_from(["claude-sonnet-5-5", "claude-haiku-5-5", "claude-sonnet-4-5"])


def biller(model: str, token_bytes: int = TOKEN_BYTES, max_tokens: int = MAX_TOKENS) -> Biller:
    fields = {"base_model_path": "base", "prompts_path": "prompts", "teacher_kind": "claude", "teacher_model_id": model}
    config = RunConfig.model_validate(fields | {"teacher_system_prompt": RULE, "rollout_max_tokens": max_tokens})
    return Biller(config, Settings(HomePaths(Path("nowhere"))), max_tokens / 2, token_bytes, TODAY)


def reserved_pico(request: TeacherRequest, model: str, max_tokens: int = MAX_TOKENS) -> int:
    """As `Cashier.reserve` reckons it."""
    limit = reply_token_limit(max_tokens)
    size = body_bytes(message_params(request, model, limit))
    return reservation_pico(PriceTable.load().price_for(model, prompt_upper_bound(size), TODAY), size, limit)


def rollout(conversation: Sequence[Message], answer: str, end: FinishReason) -> Rollout:
    return Rollout("r", 1, "p", tuple(conversation), (1,), answer, (2,), (0.0,), end, 1.0, 1.0, 8, 0, "now")


def worst(ask: Callable[[Bill], None]) -> int:
    bill = Bill()
    ask(bill)
    return bill.worst_pico


@given(turns, model_names)
def test_a_reference_reserves_exactly_its_worst_case(conversation: list[Message], model: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opd_core.money.response_cache.ResponseCache.get", lambda self, key: None)
        found = worst(partial(biller(model).references, conversations=[conversation]))
    assert found == reserved_pico(Templates(rule=RULE).reference(conversation), model)


@given(turns, answers, ends, model_names)
def test_guidance_reserves_no_more_than_its_worst_case(
    conversation: list[Message], answer: str, end: FinishReason, model: str
) -> None:
    real = reserved_pico(Templates(rule=RULE).guidance(rollout(conversation, answer, end)), model)
    assert real <= worst(partial(biller(model).guidance, conversation=conversation, count=1))


@given(st.data(), st.lists(turns, min_size=1, max_size=3), model_names)
def test_a_lesson_reserves_no_more_than_its_worst_case(
    data: st.DataObject, conversations: list[list[Message]], model: str
) -> None:
    attempt = st.tuples(st.sampled_from(conversations), answers, ends)
    attempts = data.draw(st.lists(attempt, min_size=1, max_size=4))  # perhaps all to the longest of them
    real = reserved_pico(Templates(rule=RULE).lesson([rollout(*one) for one in attempts]), model)
    assert real <= worst(partial(biller(model).lesson, conversations=conversations, answers=len(attempts), count=1))


def test_a_lesson_from_answers_to_the_longest_prompt_alone_is_within_the_worst_case() -> None:
    model, conversations = "claude-sonnet-5-5", [[{"role": "user", "content": text}] for text in ("x", "日" * 50)]
    attempts = [rollout(conversations[1], max(TOKENS, key=body_bytes_of_text) * MAX_TOKENS, "length")] * 4
    found = worst(partial(biller(model).lesson, conversations=conversations, answers=4, count=1))
    assert found == reserved_pico(Templates(rule=RULE).lesson(attempts), model)


@given(turns, answers, answers, model_names)
def test_both_orders_of_a_judgement_reserve_no_more_than_its_worst_case(
    conversation: list[Message], first: str, second: str, model: str
) -> None:
    pair = JudgePair(tuple(conversation), first, second)
    real = [reserved_pico(Templates(rule=RULE).judge(pair, swapped), model) for swapped in (False, True)]
    assert sum(real) <= worst(partial(biller(model).judgement, conversation=conversation))


def test_the_bound_is_tight_for_an_answer_of_longest_tokens_that_was_cut_off() -> None:
    model, conversation = "claude-sonnet-5-5", [{"role": "user", "content": "grüße"}]
    answer = max(TOKENS, key=body_bytes_of_text) * MAX_TOKENS
    attempt, templates = rollout(conversation, answer, "length"), Templates(rule=RULE)
    assert worst(partial(biller(model).guidance, conversation=conversation, count=1)) == reserved_pico(
        templates.guidance(attempt), model
    )
    assert worst(partial(biller(model).lesson, conversations=[conversation], answers=3, count=1)) == reserved_pico(
        templates.lesson([attempt] * 3), model
    )
    assert worst(partial(biller(model).judgement, conversation=conversation)) == 2 * reserved_pico(
        templates.judge(JudgePair(tuple(conversation), answer, answer), False), model
    )


def test_a_request_too_long_for_any_price_is_refused_so_the_worst_case_ends_there() -> None:
    model, conversation = "claude-sonnet-4-5", [{"role": "user", "content": "x"}]
    found = worst(partial(biller(model, 1000, 1000).guidance, conversation=conversation, count=1))
    prices, limit = PriceTable.load(), reply_token_limit(1000)
    longest = 200_000 - prompt_upper_bound(0)
    assert found == reservation_pico(prices.price_for(model, 200_000, TODAY), longest, limit)


def test_what_a_usual_call_holds_is_told_apart_from_the_worst() -> None:
    bill = Bill()
    biller("claude-sonnet-5-5").guidance(bill, [{"role": "user", "content": "x"}], 1)
    usual = rollout([{"role": "user", "content": "x"}], "x" * (2 * MAX_TOKENS), "stop")
    assert bill.usual_call_pico == reserved_pico(Templates(rule=RULE).guidance(usual), "claude-sonnet-5-5")
    assert bill.usual_call_pico < bill.largest_pico == bill.worst_pico and bill.sends_answers
