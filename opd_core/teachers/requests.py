"""One paid request, the money held for an attempt at it, and what it gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

from opd_core.money.totals import OpenCall


@dataclass(frozen=True)
class Request:
    """One logical request: however often it is attempted, its reply is paid for once.

    Attributes:
        key: sha256 of everything that changes the reply.
        params: arguments of the Messages call.
        parse: makes the value out of the text; raises MalformedReplyError.
    """

    kind: str
    key: str
    params: dict[str, Any]
    version: str
    sample_index: int
    parse: Callable[[str], Any]

    @property
    def model(self) -> str:
        """The model asked for."""
        return str(self.params["model"])


@dataclass(frozen=True)
class Reservation:
    """Money held for one attempt."""

    call_id: str
    request_key: str
    model: str
    amount_pico: int
    day: date

    @classmethod
    def of(cls, call: OpenCall) -> Reservation:
        """As it was made: a reply is priced by the day on which its price was reserved."""
        return cls(call.call_id, call.request_key, call.model, call.reserved_pico, call.opened_at.date())


@dataclass(frozen=True)
class Answer:
    """What a request gave; `value` is None when the reply was refused, truncated or malformed."""

    value: Any = None
