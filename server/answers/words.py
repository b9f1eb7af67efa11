"""Values, numbers and times as they may leave the house: rounded, escaped, capped, put into words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from opd_core.types import clean_text

QUOTED_CHARACTERS = 160


def tidy(value: Any, limit: int = 500) -> Any:
    """Plain data fit to leave: numbers of four significant digits, no NaN, text escaped and capped."""
    if isinstance(value, bool) or value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean_text(str(key), 100): tidy(inner, limit) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(inner, limit) for inner in value]
    return clean_text(str(value), limit)


def quoted(text: str) -> str:
    """Text of a model or a file on one line, marked as such by its quotes."""
    return json.dumps(text[:QUOTED_CHARACTERS], ensure_ascii=False)


def number(value: float | None, unit: str = "") -> str:
    """A number for a sentence: `0.8312` is `0.831`."""
    return "unknown" if value is None else f"{value:,.3g}{unit}"


def percent(share: float | None) -> str:
    """A share of 0 to 1 for a sentence."""
    return "unknown" if share is None else f"{100 * share:.3g} %"


def duration(seconds: float | None) -> str:
    """`about 4 minutes`, in words."""
    if seconds is None:
        return "an unknown time"
    if seconds < 90:
        return "about a second" if seconds < 1.5 else f"about {round(seconds)} seconds"
    if seconds < 5400:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"


def moment(iso: str) -> str:
    """`2026-11-23T13:00:00Z` for the ear: `13:00 UTC on 23 November`."""
    try:
        at = datetime.fromisoformat(iso).astimezone(UTC)
    except ValueError:
        return clean_text(iso, 40)
    return f"{at:%H:%M} UTC on {at.day} {at:%B}"
