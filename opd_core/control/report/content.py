"""What a report says, independent of how it is written down: sections of paragraphs, tables, curves, samples, code.

Everything here is plain text. The writers (`html_page`, `markdown_page`) escape all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from opd_core.control.axes import Points


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values, one a row."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """A table with a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    name: str
    points: Points


@dataclass(frozen=True)
class Chart:
    """Curves over the steps, on one scale."""

    title: str
    unit: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class SideBySide:
    """Texts that belong to one prompt: data from a file and from models."""

    prompt: str
    answers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines for a terminal or a program."""

    text: str


Block = Paragraph | Facts | Table | Chart | SideBySide | Items | Code


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """The whole page."""

    title: str
    summary: str
    sections: tuple[Section, ...]
