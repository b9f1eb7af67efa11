"""Reading and comparing texts nobody vouches for: strict JSON, timed patterns, equality in all but case.

The standard `re` cannot be interrupted, so a pattern such as `(a+)+$` can hang a worker on one long word; the
package `regex` takes a time limit, and is used for every pattern that a user wrote.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from decimal import Decimal
from typing import Any, NoReturn

import regex

from opd_core.types import clean_text, plain_name

MAX_PATTERN_CHARS = 2_000
MAX_REPEATS = 10_000
"""Counts of repeats within repeats, multiplied; the package writes them out when it compiles."""
MAX_UNROLLED_CHARS = 200_000
PATTERN_TIMEOUT_SECONDS = 0.5

_APOSTROPHE_OR_THOUSANDS_COMMA = re.compile(r"['’ʼ]|(?<=\d),(?=\d{3}(?!\d))")
_TOKEN = re.compile(
    r"(?P<flags>\(\?[A-Za-z0-9-]*\))|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]?"  # flags, an escape, a class of characters
    r"|\{\s*(?P<low>\d*)\s*(?:,\s*(?P<high>\d*)\s*)?\}|(?P<open>\()|(?P<close>\))|.",
    re.DOTALL,
)
_COUNT = re.compile(r"\{[\s\d,]*[}#]")
# Comments, free spacing, nested and POSIX classes: there a bracket may not mean what it says.
_UNCLEAR = re.compile(r"\(\?(?:#|[A-Za-z0-9]*[xV])|\[:")
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
        ValueError: too long, repeats that multiply to too many, or not a valid regular expression.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"the pattern has {len(pattern)} characters; at most {MAX_PATTERN_CHARS} are allowed")
    repeats, characters = _unrolled(pattern)
    if repeats > MAX_REPEATS:
        raise ValueError(
            f"the counted repeats of {clean_text(pattern, 80)!r} multiply to more than {MAX_REPEATS:,}; "
            "give smaller counts, or * and + in their place"
        )
    if characters > MAX_UNROLLED_CHARS:
        raise ValueError(
            f"with its counted repeats written out, {clean_text(pattern, 80)!r} has more than "
            f"{MAX_UNROLLED_CHARS:,} characters; give smaller counts, or * and + in their place"
        )
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        reason = str(error) or "nested too deeply"
        raise ValueError(f"{clean_text(pattern, 80)!r} is not a valid regular expression: {reason}") from None


def _unrolled(pattern: str) -> tuple[int, int]:
    """The largest product of nested repeat counts, and the length with every count written out; never too small."""
    if _UNCLEAR.search(pattern):
        counts = _COUNT.findall(pattern)
        if any(count.endswith("#") for count in counts):  # a comment within a count hides it
            return MAX_REPEATS + 1, 0
        repeats = math.prod(_largest(re.sub(r"[\s{}]", "", count).split(",")) for count in counts)
        return repeats, repeats * len(pattern)
    groups: list[list[tuple[int, int]]] = [[(1, 0)]]  # of each open group, its parts as (repeats, characters)
    for token in _TOKEN.finditer(pattern):
        if token["flags"]:  # no part of its own: a count behind it is for the part before
            continue
        if token["open"]:
            groups.append([(1, 0)])
        elif token["close"] and len(groups) > 1:
            part = _joined(groups.pop())
            groups[-1].append(part)
        elif token["low"] is not None:
            count = _largest([token["low"], token["high"]])
            repeats, characters = groups[-1][-1]
            groups[-1][-1] = (count * repeats, count * characters)
        else:
            groups[-1].append((1, 1))
    return _joined([part for group in groups for part in group])


def _joined(parts: list[tuple[int, int]]) -> tuple[int, int]:
    return max(repeats for repeats, _ in parts), sum(characters for _, characters in parts)


def _largest(counts: list[str]) -> int:
    return max([1, *(int(count) for count in counts if count)])


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
