from __future__ import annotations

from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_core.errors import BadUsageError, ConfigError, StalePricesError, UnknownPriceError
from opd_core.money.amounts import PICO_PER_USD, format_usd, pico_from_usd
from opd_core.money.price_table import SHIPPED_PRICES
from opd_core.money.pricing import (
    HIDDEN_PROMPT_TOKENS,
    Price,
    PriceTable,
    Usage,
    cost_pico,
    prompt_upper_bound,
    reservation_pico,
)

TODAY = date(2026, 11, 23)
TABLE = PriceTable.load()
MILLION = 10**6


def usd_per_million(price: Price) -> tuple[Decimal, ...]:
    """Input, 5-minute write, 1-hour write, cache read, output: the columns of the provider's page."""
    writes = (price.cache_write_5m_pico, price.cache_write_1h_pico)
    picos = (price.input_pico, *writes, price.cache_read_pico, price.output_pico)
    return tuple(Decimal(pico) / MILLION for pico in picos)


OPUS = ("5", "6.25", "10", "0.50", "25")
SONNET_4 = ("3", "3.75", "6", "0.30", "15")


@pytest.mark.parametrize(
    ("model", "prompt_tokens", "expected"),
    [
        ("claude-haiku-4-5", 1, ("1", "1.25", "2", "0.10", "5")),
        ("claude-haiku-5-5", 100_000, ("0.10", "0.125", "0.20", "0.01", "0.50")),
        ("claude-haiku-5-5", 100_001, ("0.50", "0.625", "1.00", "0.05", "2.50")),
        ("claude-sonnet-4-5", 200_000, SONNET_4),
        ("claude-sonnet-4-6", 900_000, SONNET_4),
        ("claude-sonnet-5", 1, ("2", "2.50", "4", "0.20", "10")),
        ("claude-sonnet-5-5", 1, ("2", "2.50", "4", "0.10", "10")),
        ("claude-opus-4-5", 1, OPUS),
        ("claude-opus-4-6", 1, OPUS),
        ("claude-opus-4-7", 1, OPUS),
        ("claude-opus-4-8", 1, OPUS),
        ("claude-opus-5", 1, OPUS),
        ("claude-opus-5-5", 1, ("4", "5", "8", "0.20", "20")),
    ],
)
def test_every_row_of_the_providers_page_is_in_the_table(
    model: str, prompt_tokens: int, expected: tuple[str, ...]
) -> None:
    assert usd_per_million(TABLE.price_for(model, prompt_tokens, TODAY)) == tuple(map(Decimal, expected))


def test_a_price_holds_from_its_day_on() -> None:
    reads = [TABLE.price_for("claude-sonnet-5-5", 1, date(2026, 10, day)).cache_read_pico for day in (6, 7, 8)]
    assert reads == [200_000, 100_000, 100_000]


def test_before_its_first_day_a_model_has_no_price() -> None:
    with pytest.raises(UnknownPriceError, match=r"claude-haiku-5-5.*2026-10-06.*clock"):
        TABLE.price_for("claude-haiku-5-5", 1, date(2026, 10, 6))


def test_a_dated_id_has_the_price_of_its_model() -> None:
    dated = TABLE.price_for("claude-sonnet-5-5-20261007", 1, TODAY)
    assert dated == TABLE.price_for("claude-sonnet-5-5", 1, TODAY)
    assert (dated.model, dated.version) == ("claude-sonnet-5-5", TABLE.version)


@pytest.mark.parametrize(
    "model", ["claude-sonnet-6", "claude-sonnet-5-5-latest", "claude-sonnet-5-5-2026100", "gpt", "", "claude-sonnet"]
)
def test_an_unknown_model_is_refused_and_the_known_ones_are_named(model: str) -> None:
    with pytest.raises(UnknownPriceError, match=r"nothing is sent.*claude-sonnet-5-5"):
        TABLE.price_for(model, 1, TODAY)


def test_an_unconfirmed_tier_is_refused() -> None:
    with pytest.raises(UnknownPriceError, match="may exceed 200,000 tokens"):
        TABLE.price_for("claude-sonnet-4-5", 200_001, TODAY)


@pytest.mark.parametrize(
    ("today", "expected"),
    [
        (date(2026, 10, 30), None),
        (date(2026, 10, 31), date(2026, 11, 30)),
        (date(2026, 11, 29), date(2026, 11, 30)),
        (date(2026, 11, 30), "retired"),
        (date(2027, 1, 1), "retired"),
    ],
)
def test_a_retirement_is_told_thirty_days_ahead(today: date, expected: object) -> None:
    assert TABLE.retirement("claude-sonnet-4-5-20250929", today) == expected
    assert TABLE.retirement("claude-sonnet-5-5", today) is None


@pytest.mark.parametrize(
    ("model", "today", "told"),
    [
        ("claude-sonnet-4-6-20260217", date(2027, 1, 17), None),
        ("claude-sonnet-4-6-20260217", date(2027, 1, 18), "not before 2027-02-17: no day is announced"),
        ("claude-sonnet-4-6", date(2027, 2, 17), "not before 2027-02-17: that day has passed"),
        ("claude-haiku-4-5", date(2026, 11, 23), "not before 2026-10-15: that day has passed"),
        ("claude-opus-4-5", date(2026, 11, 23), "not before 2026-11-24: no day is announced"),
        ("claude-sonnet-4-5", date(2026, 11, 23), "retires on 2026-11-30"),
        ("claude-sonnet-4-5", date(2026, 12, 23), "is retired"),
        ("claude-sonnet-5-5", date(2027, 12, 23), None),
    ],
)
def test_the_end_of_a_promise_is_told_as_such_and_is_no_retirement(model: str, today: date, told: str | None) -> None:
    notice = TABLE.retirement_notice(model, today)
    assert notice is None if told is None else notice is not None and told in notice
    assert (TABLE.retirement(model, today) is None) == (told is None or "not before" in told)


def test_prices_are_fresh_for_ninety_days_or_after_a_persons_look() -> None:
    checked = TABLE.checked_on
    last = date.fromordinal(checked.toordinal() + 90)
    late = date.fromordinal(checked.toordinal() + 91)
    assert (TABLE.age_days(checked), TABLE.age_days(late), TABLE.age_days(date(2020, 1, 1))) == (0, 91, 0)
    TABLE.require_fresh(last)
    TABLE.require_fresh(late, confirmed_on=late)
    for confirmed_on in (None, date(2026, 1, 1), date(2030, 1, 1)):  # never, long ago, in the future
        with pytest.raises(StalePricesError, match=rf"91 days ago.*prices_confirmed_on = {late}"):
            TABLE.require_fresh(late, confirmed_on)


def test_a_reservation_is_every_byte_and_every_token_at_the_dearest_price() -> None:
    price = TABLE.price_for("claude-sonnet-5-5", prompt_upper_bound(1000), TODAY)
    tokens = 1000 + HIDDEN_PROMPT_TOKENS
    answer = 500 * 10 * MILLION
    assert reservation_pico(price, 1000, 500, cache_write="none") == tokens * 2 * MILLION + answer
    assert reservation_pico(price, 1000, 500) == tokens * 2_500_000 + answer
    assert reservation_pico(price, 1000, 500, cache_write="1h") == tokens * 4 * MILLION + answer
    assert reservation_pico(price, 1000, 500, batch=True) * 2 == reservation_pico(price, 1000, 500)


def test_a_cost_is_the_sum_over_all_kinds_of_tokens() -> None:
    usage = Usage(10, 20, cache_write_5m_tokens=30, cache_write_1h_tokens=40, cache_read_tokens=50)
    cost = cost_pico(TABLE, "claude-sonnet-5-5", usage, when=TODAY)
    assert cost == 10 * 2_000_000 + 20 * 10_000_000 + 30 * 2_500_000 + 40 * 4_000_000 + 50 * 100_000
    assert cost_pico(TABLE, "claude-sonnet-5-5", usage, batch=True, when=TODAY) * 2 == cost


def test_a_million_tokens_in_and_out_cost_what_the_page_says() -> None:
    cost = cost_pico(TABLE, "claude-opus-5-5", Usage(MILLION, MILLION), when=TODAY)
    assert cost == 24 * PICO_PER_USD


def test_above_a_tier_every_token_is_dearer_and_cached_ones_count_towards_it() -> None:
    below = Usage(60_000, 100, cache_read_tokens=40_000)
    above = Usage(60_000, 100, cache_read_tokens=40_001)
    model = "claude-haiku-5-5"
    assert cost_pico(TABLE, model, below, when=TODAY) == 60_000 * 100_000 + 40_000 * 10_000 + 100 * 500_000
    assert cost_pico(TABLE, model, above, when=TODAY) == 60_000 * 500_000 + 40_001 * 50_000 + 100 * 2_500_000


def test_another_model_in_the_reply_costs_the_dearer_of_the_two() -> None:
    usage = Usage(100, 100)
    dear = cost_pico(TABLE, "claude-opus-5-5", usage, when=TODAY)
    for asked, answered in [("claude-sonnet-5-5", "claude-opus-5-5"), ("claude-opus-5-5", "claude-sonnet-5-5")]:
        assert cost_pico(TABLE, answered, usage, when=TODAY, requested_model=asked) == dear


@pytest.mark.parametrize(
    ("model", "usage", "factor"),
    [
        ("claude-sonnet-5-5", Usage(100, 100, inference_geo="us"), Fraction(11, 10)),
        ("claude-sonnet-5-5", Usage(100, 100, inference_geo="global", service_tier="standard"), Fraction(1)),
        ("claude-opus-5-5", Usage(100, 100, speed="fast"), Fraction(2)),
    ],
)
def test_an_unexpected_way_of_serving_is_priced_as_it_was(model: str, usage: Usage, factor: Fraction) -> None:
    assert cost_pico(TABLE, model, usage, when=TODAY) == cost_pico(TABLE, model, Usage(100, 100), when=TODAY) * factor


def test_the_batch_half_needs_a_batch_on_both_sides() -> None:
    whole = cost_pico(TABLE, "claude-sonnet-5-5", Usage(100, 100), when=TODAY)
    served = {tier: Usage(100, 100, service_tier=tier) for tier in (None, "batch", "standard")}
    costs = {tier: cost_pico(TABLE, "claude-sonnet-5-5", usage, True, when=TODAY) for tier, usage in served.items()}
    assert costs == {None: whole // 2, "batch": whole // 2, "standard": whole}
    assert cost_pico(TABLE, "claude-sonnet-5-5", served["batch"], when=TODAY) == whole


@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("claude-sonnet-9", Usage(1, 1)),
        ("claude-sonnet-5-5", Usage(1, 1, service_tier="priority")),
        ("claude-sonnet-5-5", Usage(1, 1, speed="fast")),
        ("claude-sonnet-5-5", Usage(1, 1, inference_geo="moon")),
        ("claude-sonnet-5-5", Usage(1, 1, server_tool_requests=1)),
    ],
)
def test_what_has_no_price_is_never_guessed(model: str, usage: Usage) -> None:
    with pytest.raises(UnknownPriceError):
        cost_pico(TABLE, model, usage, when=TODAY, requested_model="claude-sonnet-5-5")


@given(
    model=st.sampled_from([row.name for row in TABLE.models]),
    request_bytes=st.integers(0, 190_000),
    max_tokens=st.integers(1, 20_000),
    shares=st.tuples(*[st.floats(0, 1)] * 4),
    hour=st.booleans(),
    batch=st.booleans(),
)
def test_no_reply_within_its_bounds_costs_more_than_its_reservation(
    model: str, request_bytes: int, max_tokens: int, shares: tuple[float, ...], hour: bool, batch: bool
) -> None:
    bound = prompt_upper_bound(request_bytes)
    written = int(bound * shares[0])
    read = int((bound - written) * shares[1])
    plain = int((bound - written - read) * shares[2])
    output = int(max_tokens * shares[3])
    usage = Usage(
        plain, output, cache_read_tokens=read,
        cache_write_1h_tokens=written * hour, cache_write_5m_tokens=written * (not hour),
    )  # fmt: skip
    price = TABLE.price_for(model, bound, TODAY)
    reserved = reservation_pico(price, request_bytes, max_tokens, batch, cache_write="1h" if hour else "5m")
    assert 0 <= cost_pico(TABLE, model, usage, batch, when=TODAY) <= reserved


def test_a_usage_is_read_from_a_mapping_or_an_object() -> None:
    reported = {
        "input_tokens": 1,
        "output_tokens": 2,
        "cache_creation_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
        "cache_read_input_tokens": 5,
        "service_tier": "standard",
        "server_tool_use": None,
        "speed": None,
        "something_new": {"a": 1},
    }
    expected = Usage(1, 2, 3, 4, 5, service_tier="standard")
    assert Usage.parse(reported) == expected
    as_object = SimpleNamespace(
        **reported | {"cache_creation": SimpleNamespace(ephemeral_5m_input_tokens=3, ephemeral_1h_input_tokens=4)}
    )
    assert Usage.parse(as_object) == expected
    assert expected.prompt_tokens == 13


@pytest.mark.parametrize(
    ("creation", "expected"),
    [
        (None, (0, 9)),
        ({"ephemeral_5m_input_tokens": 4}, (4, 5)),
        ({"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 6}, (4, 6)),
    ],
)
def test_cache_writes_of_unknown_duration_count_as_the_dearer(creation: object, expected: tuple[int, int]) -> None:
    usage = Usage.parse(
        {"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 9, "cache_creation": creation}
    )
    assert (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) == expected


def test_server_tools_are_counted() -> None:
    usage = Usage.parse({"input_tokens": 1, "output_tokens": 1, "server_tool_use": {"web_search_requests": 2}})
    assert usage.server_tool_requests == 2


@pytest.mark.parametrize("value", [None, "NaN", "3", -3, -1, 2.0, float("nan"), True, [], 10**9])
@pytest.mark.parametrize("name", ["input_tokens", "output_tokens"])
def test_a_number_that_is_none_is_refused(name: str, value: object) -> None:
    with pytest.raises(BadUsageError, match=rf"{name} = .*charged in full"):
        Usage.parse({"input_tokens": 1, "output_tokens": 1, name: value})


@pytest.mark.parametrize(
    "reported",
    [
        None,
        "usage",
        3,
        {},
        {"input_tokens": 1},
        {"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": -1},
        {"input_tokens": 1, "output_tokens": 1, "cache_creation": {"ephemeral_1h_input_tokens": "1"}},
        {"input_tokens": 1, "output_tokens": 1, "service_tier": 4},
    ],
)
def test_a_broken_usage_is_refused(reported: object) -> None:
    with pytest.raises(BadUsageError):
        Usage.parse(reported)


def test_a_hostile_usage_cannot_steer_the_message() -> None:
    with pytest.raises(BadUsageError) as caught:
        Usage.parse({"input_tokens": "\x1b[2J" + "x" * 10_000, "output_tokens": 1})
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('version = "2026-10-25"', "", "version"),
        ("output = 5 }", "output = -5 }", "output"),
        ("output = 5 }", "output = 0 }", "output"),
        ("output = 5 }", "output = 0.0000001 }", "output"),
        ("output = 5 }", "output = nan }", "output"),
        ("output = 5 }", "outpt = 5 }", "output"),
        ("output = 5 }", "output = 5, extra = 1 }", "extra"),
        ("effective_from = 2026-10-07, input", "effective_from = 2026-10-07, above_prompt_tokens = 5, input", "above"),
        ("version =", "version ==", "line"),
    ],
)
def test_a_broken_table_is_refused_by_the_name_of_its_fault(tmp_path: Path, old: str, new: str, reason: str) -> None:
    shipped = SHIPPED_PRICES.read_text(encoding="utf-8")
    assert old in shipped
    path = tmp_path / "prices.toml"
    path.write_text(shipped.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=reason):
        PriceTable.load(path)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        PriceTable.load(tmp_path / "none.toml")


def test_a_persons_own_table_is_used(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    text = SHIPPED_PRICES.read_text(encoding="utf-8")
    path.write_text(text.replace('version = "2026-10-25"', 'version = "mine"'), encoding="utf-8")
    assert PriceTable.load(path).price_for("claude-opus-5", 1, TODAY).version == "mine"


@pytest.mark.parametrize(
    ("usd", "pico"),
    [
        (5, 5 * PICO_PER_USD),
        (0.1, PICO_PER_USD // 10),
        ("0.0000000000019", 1),
        (Decimal("4.35"), 4_350_000_000_000),
        (0, 0),
    ],
)
def test_dollars_become_picodollars_as_written(usd: float | str, pico: int) -> None:
    assert pico_from_usd(usd) == pico


@pytest.mark.parametrize("usd", [-1, float("nan"), float("inf"), "five", "", 10**8])
def test_what_is_no_amount_is_refused(usd: float | str) -> None:
    with pytest.raises(ConfigError, match="not an amount of money"):
        pico_from_usd(usd)


@pytest.mark.parametrize(
    ("pico", "shown"),
    [
        (0, "$0.00"),
        (5 * PICO_PER_USD, "$5.00"),
        (1_234_500_000_000_000, "$1,234.50"),
        (31_200_000_000, "$0.0312"),
        (4_000_000, "$0.000004"),
        (-4_000_000, "-$0.000004"),
        (7, "$0.000000000007"),
    ],
)
def test_amounts_read_well(pico: int, shown: str) -> None:
    assert format_usd(pico) == shown
