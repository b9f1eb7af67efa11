"""What a reply says it used, checked: the provider's library passes on whatever came over the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from opd_core.errors import BadUsageError
from opd_core.types import clean_text

MOST_TOKENS = 100_000_000
"""No reply uses more; a larger number is damage, and would not fit into the ledger."""


@dataclass(frozen=True)
class Usage:
    """Billed tokens of one reply by price; `None` where the reply names no option."""

    input_tokens: int
    """Read at the plain price: neither written to the provider's prompt cache nor read from it."""
    output_tokens: int
    """Everything written, thinking included."""
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0
    server_tool_requests: int = 0
    """Uses of tools that run at the provider and cost extra."""
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None

    @property
    def prompt_tokens(self) -> int:
        """The whole prompt: what decides the price tier."""
        return self.input_tokens + self.cache_write_5m_tokens + self.cache_write_1h_tokens + self.cache_read_tokens

    @classmethod
    def parse(cls, reported: object) -> Usage:
        """Read a reply's `usage`: a mapping, or an object with the same attributes.

        Tokens written to the cache without saying for how long count as written for an hour, the dearer price.

        Raises:
            BadUsageError: it is missing, or a number in it is missing, not whole, negative or absurd.
        """
        if reported is None:
            raise _bad("usage", None)
        split = _field(reported, "cache_creation")
        five_minutes, hour = (_count(split, f"ephemeral_{ttl}_input_tokens", 0) for ttl in ("5m", "1h"))
        written = _count(reported, "cache_creation_input_tokens", 0)
        tools = _field(reported, "server_tool_use")
        requests = ("web_search_requests", "web_fetch_requests")
        return cls(
            input_tokens=_count(reported, "input_tokens"),
            output_tokens=_count(reported, "output_tokens"),
            cache_write_5m_tokens=five_minutes,
            cache_write_1h_tokens=hour + max(0, written - five_minutes - hour),
            cache_read_tokens=_count(reported, "cache_read_input_tokens", 0),
            server_tool_requests=sum(_count(tools, name, 0) for name in requests),
            service_tier=_word(reported, "service_tier"),
            speed=_word(reported, "speed"),
            inference_geo=_word(reported, "inference_geo"),
        )

    def as_json(self) -> str:
        """One line for the ledger."""
        return json.dumps({name: value for name, value in asdict(self).items() if value}, allow_nan=False)


def _field(holder: object, name: str) -> object:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _count(holder: object, name: str, default: int | None = None) -> int:
    value = _field(holder, name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        raise _bad(name, value)
    return value


def _word(holder: object, name: str) -> str | None:
    value = _field(holder, name)
    if value is not None and not isinstance(value, str):
        raise _bad(name, value)
    return value


def _bad(name: str, value: object) -> BadUsageError:
    return BadUsageError(
        f"The reply's usage says {name} = {clean_text(repr(value), 60)}, which is no valid count. The call is charged "
        "in full. If it happens again, check the base URL in settings.toml: the Messages API does not answer so."
    )
