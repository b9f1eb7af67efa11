"""What a call may cost at most before it is sent, and what it cost by the usage it reports. Unknown means refused.

Two assumptions carry the whole budget: the price table is right, and a request has no more tokens than bytes. The
ledger's freeze on an overrun is the guard for the second.
"""

from __future__ import annotations

from datetime import date
from fractions import Fraction
from math import ceil
from typing import Literal

from opd_core.errors import UnknownPriceError
from opd_core.money.price_table import Price as Price
from opd_core.money.price_table import PriceTable as PriceTable
from opd_core.money.usage import Usage as Usage

HIDDEN_PROMPT_TOKENS = 2048
"""What the provider may add unseen: a tool system prompt (up to 804 tokens), the prompt of structured output."""

CacheWrite = Literal["none", "5m", "1h"]
"""For how long a request asks the provider to keep its beginning; writing costs more than plain input."""


def prompt_upper_bound(request_bytes: int) -> int:
    """The most prompt tokens a request of so many bytes can have: a token is at least a byte; plus the unseen ones."""
    return request_bytes + HIDDEN_PROMPT_TOKENS


def reservation_pico(
    price: Price, request_bytes: int, max_tokens: int, batch: bool = False, *, cache_write: CacheWrite = "5m"
) -> int:
    """The most a call can cost, in picodollars.

    Args:
        price: `price_for` the model and `prompt_upper_bound(request_bytes)`.
        request_bytes: UTF-8 bytes of the whole serialised request.
        max_tokens: as in the request; thinking counts towards it.
        cache_write: what the request's `cache_control` asks for.
    """
    writes = {"none": 0, "5m": price.cache_write_5m_pico, "1h": price.cache_write_1h_pico}
    prompt_pico = max(price.input_pico, price.cache_read_pico, writes[cache_write])
    whole = prompt_upper_bound(request_bytes) * prompt_pico + max_tokens * price.output_pico
    return ceil(whole * price.batch_factor) if batch else whole


def cost_pico(
    table: PriceTable,
    model_in_reply: str,
    usage: Usage,
    batch: bool = False,
    *,
    when: date,
    requested_model: str | None = None,
) -> int:
    """What a reply cost, in picodollars.

    A reply that differs from what was asked (another model, a faster or dearer way of serving it) is priced by the
    dearest row that fits, and the batch half is given only when nothing in the reply speaks against it.

    Args:
        when: the day (UTC) on which the call was reserved.
        requested_model: the model asked for; the dearer of the two counts.

    Raises:
        UnknownPriceError: a model, service tier, speed, region or server tool without a price. Charge the call in full
            and freeze.
    """
    geo = table.geo_factors.get(usage.inference_geo or "global")
    if geo is None or usage.service_tier not in (None, "standard", "batch") or usage.server_tool_requests:
        raise UnknownPriceError(
            "A reply used something that has no price here "
            f"(region {usage.inference_geo!r:.40}, service tier {usage.service_tier!r:.40}, "
            f"{usage.server_tool_requests} server tool requests). A person must look at the provider's usage page."
        )
    models = {model_in_reply, requested_model or model_in_reply}
    prices = [table.dearest(name, usage.prompt_tokens, when, usage.speed or "standard") for name in models]
    factor = Fraction(geo) * (Fraction(table.batch_factor) if batch and usage.service_tier != "standard" else 1)
    return max(ceil(_sum_pico(price, usage) * factor) for price in prices)


def _sum_pico(price: Price, usage: Usage) -> int:
    return (
        usage.input_tokens * price.input_pico
        + usage.cache_write_5m_tokens * price.cache_write_5m_pico
        + usage.cache_write_1h_tokens * price.cache_write_1h_pico
        + usage.cache_read_tokens * price.cache_read_pico
        + usage.output_tokens * price.output_pico
    )
