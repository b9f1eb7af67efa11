"""Patterns that a user wrote: what would freeze the process when it is compiled is refused before."""

from __future__ import annotations

import pytest
import regex

from opd_core.config import parse_config
from opd_core.errors import OPDError
from opd_core.matching import compile_pattern

MUCH = "(?:(?:a{1000}){1000}){1000}"


@pytest.fixture(autouse=True)
def _compiles_nothing_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that is let through by mistake fails the test at once; it does not eat the memory."""
    monkeypatch.setattr(regex, "compile", lambda pattern: pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        MUCH,
        "a{10001}",
        "a{,10001}",
        "a{10001,}",
        "(?:a{1,101}){0,100}",
        r"(?:(?:a{1000}[)]){1000}){1000}",
        r"(?:(?:a{1000}\)){1000}){1000}",
        r"(?:(?:a{1000}[^])]){1000}){1000}",
        "(?x)#[\n" + MUCH,
        "(?x) a {200} #)\n {200}",
        "(?ix:(a{1000} #)\n){1000})",
        "(?V1)(?:(?:a{1000}[[b])]){1000}){1000}",
        "(?x)a{1 0 0 0 1}",
        "(?x)a{#c\n20000}",
        "(?:(?:a{1000})(?i){1000})(?s-i){1000}",
        "(?#[)" + MUCH,
        "[[:alpha:])]" + MUCH,
        "(?:a{100}b|(?P<name>c{2})|d){101}",
    ],
)
def test_repeats_that_multiply_to_more_than_ten_thousand_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"multiply to more than 10,000; give smaller counts"):
        compile_pattern(pattern)


def test_a_long_text_that_is_repeated_often_is_refused() -> None:
    with pytest.raises(ValueError, match=r"more than 200,000 characters"):
        compile_pattern("(?:" + "a?" * 500 + "){10000}")


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:a{100}){100}",
        r"\d{4}-\d{2}-\d{2}" * 20,
        r"(?:[{1000}]\{1000\}){100}",
        r"[a{9000}](?:b{9000})c{9000}",
        "(a{100})(b{100})(c{100})",
        "(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}){1,20}",
        "a{b}{,}{}",
        r"(?i)\d{4}-\d{2}-\d{2}" + "a{99}" * 20,
    ],
)
def test_repeats_side_by_side_or_in_classes_or_escaped_do_not_multiply(pattern: str) -> None:
    assert str(compile_pattern(pattern)) == pattern


def test_a_configuration_with_such_a_pattern_is_refused_in_the_same_words() -> None:
    with pytest.raises(OPDError, match="multiply to more than 10,000"):
        parse_config({"base_model_path": "m", "prompts_path": "p", "check": {"kind": "regex", "pattern": MUCH}})
