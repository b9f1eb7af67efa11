"""Text in Markdown: nothing in it a mark, and no fence that it can end."""

from __future__ import annotations

import pytest

from opd_core.control.report.markdown_page import fenced, plain


@pytest.mark.parametrize("text", ["# head", "- item", "1. one", "> quote", "a\n# b", "= x", "*b*", "_b_", "`c`", "a|b"])
def test_plain_text_begins_no_markdown(text: str) -> None:
    shown = plain(text)
    assert ("\n" not in shown and "\\" in shown) or text == "a\n# b"


def test_a_fence_is_longer_than_any_inside() -> None:
    assert fenced("a ```` b")[0] == "`````text"
