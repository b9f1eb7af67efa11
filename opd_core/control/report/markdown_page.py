"""A report as Markdown: the same sections; curves as a line of blocks with first, lowest, highest and last value.

Texts of models and files stand in fenced blocks whose fence is longer than any run of backticks inside.
"""

from __future__ import annotations

import re

from opd_core.control.report.content import (
    Block,
    Chart,
    Code,
    Curve,
    Facts,
    Items,
    Paragraph,
    Report,
    SideBySide,
    Table,
)
from opd_core.control.sparkline import sparkline
from opd_core.types import clean_text

_SPECIAL = re.compile(r"([\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)|://)")
_LINE_START = re.compile(r"^(?:#|=|[-+](?=[-+\s]|$))")
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")


def markdown_page(report: Report) -> str:
    """The whole page."""
    lines = [f"# {plain(report.title)}", "", plain(report.summary)]
    for section in report.sections:
        lines += ["", f"## {plain(section.title)}"]
        for block in section.blocks:
            lines += ["", *_block(block)]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is: on one line, nothing in it a mark, a link or a tag."""
    one_line = " ".join(clean_text(text, len(text)).split())
    escaped = _SPECIAL.sub(r"\\\g<0>", one_line)
    return _NUMBERED.sub(r"\1\\\2", _LINE_START.sub(r"\\\g<0>", escaped))


def _block(block: Block) -> list[str]:
    match block:
        case Paragraph():
            return [plain(block.text)]
        case Items():
            return [f"- {plain(item)}" for item in block.items]
        case Facts():
            return _table(("", ""), block.rows)
        case Table():
            return _table(block.header, block.rows)
        case Chart():
            return [f"**{plain(block.title)}** ({plain(block.unit)})", "", *_curves(block.curves)]
        case Code():
            return fenced(block.text)
        case SideBySide():
            parts = [("prompt", block.prompt), *block.answers]
            return [line for name, text in parts for line in ("", f"{plain(name)}:", "", *fenced(text))]


def _table(header: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> list[str]:
    def row(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(plain(cell) for cell in cells) + " |"

    return [row(header), "|" + " --- |" * len(header), *(row(cells) for cells in rows)]


def _curves(curves: tuple[Curve, ...]) -> list[str]:
    return [f"- {plain(curve.name)}: {sparkline([value for _, value in curve.points])}" for curve in curves]


def fenced(text: str) -> list[str]:
    """A fenced block that its text cannot end."""
    text = clean_text(text, len(text))
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *text.split("\n"), fence]
