"""Reading and comparing texts nobody vouches for: strict JSON, timed patterns, equality in all but case.

The standard `re` cannot be interrupted, so a pattern such as `(a+)+$` can hang a worker on one long word; the
package `regex` takes a time limit, and is used for every pattern that a user wrote.
"""

from __future__ import annotations

import json
import re
import unicodedata
from decimal import Decimal
from typing import Any, NoReturn

import regex

from opd_core.types import clean_text, plain_name

MAX_PATTERN_CHARS = 2_000
PATTERN_TIMEOUT_SECONDS = 0.5

_APOSTROPHE_OR_THOUSANDS_COMMA = re.compile(r"['’ʼ]|(?<=\d),(?=\d{3}(?!\d))")
_PUNCTUATION = regex.compile(r"(?!(?<!\w)-(?=\.?\d))(?!(?<=\d)\.(?=\d))[\p{P}_]")  # not a sign, not a decimal point
NUMBER = re.compile(r"(?:(?<!\w)[-+])?(?:\d+(?:,\d{3})*(?:\.\d+)?|(?<![\d.])\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?")
"""A decimal number in running text, with thousands commas."""


def _no_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {plain_name(key)} stands twice")
        found[key] = value
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


STRICT_JSON = json.JSONDecoder(object_pairs_hook=_no_duplicate_keys, parse_constant=_no_constant)
"""JSON as its standard has it: duplicate keys and NaN raise ValueError, too deep nesting RecursionError."""


def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """Compile a pattern that a user wrote; the package caches it.

    Raises:
        ValueError: too long, or not a valid regular expression.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"the pattern has {len(pattern)} characters; at most {MAX_PATTERN_CHARS} are allowed")
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        reason = str(error) or "nested too deeply"
        raise ValueError(f"{clean_text(pattern, 80)!r} is not a valid regular expression: {reason}") from None


def matches(pattern: str, text: str, *, full: bool = False) -> bool:
    """Whether the pattern matches some part of the text, or all of it; False when time runs out."""
    compiled = compile_pattern(pattern)
    matcher = compiled.fullmatch if full else compiled.search
    try:
        return matcher(text, timeout=PATTERN_TIMEOUT_SECONDS) is not None
    except TimeoutError:
        return False


def last_match(pattern: str, text: str) -> str | None:
    """The first group of the last match, or the match when there is no group; None without one in time."""
    compiled = compile_pattern(pattern)
    group = 1 if compiled.groups else 0
    last = None
    try:
        for found in compiled.finditer(text, timeout=PATTERN_TIMEOUT_SECONDS):
            last = found.group(group)
    except TimeoutError:
        return None
    return last


def normalise(text: str) -> str:
    """Text without regard to case, punctuation and spacing; signs and points of numbers stay.

    A text that is nothing but punctuation stays as it is, so that "!" does not equal "?".
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    joined = _APOSTROPHE_OR_THOUSANDS_COMMA.sub("", folded)
    return " ".join(_PUNCTUATION.sub(" ", joined).split()) or folded.strip()


def same_answer(answer: str, reference: str) -> bool:
    """Whether two answers are equal: numbers by value, anything else by `normalise`."""
    left, right = _as_number(answer), _as_number(reference)
    if left is not None and right is not None:
        return left == right
    return normalise(answer) == normalise(reference)


def _as_number(text: str) -> Decimal | None:
    found = NUMBER.fullmatch(text.strip().rstrip(".").lstrip("$€£ "))
    return Decimal(found.group().replace(",", "")) if found else None
