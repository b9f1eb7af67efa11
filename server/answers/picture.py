"""Curves as a PNG that a person can read, drawn with Pillow: one panel a metric, one line a run.

Drawn at twice the size and scaled down, which smooths lines and letters; sixteen fixed colours, so that the picture
stays small enough for a chat.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING

from opd_core.control.axes import Points, Scale, tick_label

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

WIDTH, HEIGHT_OF_PANEL = 720, 220
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 44, 36
FONT_PIXELS, TITLE_PIXELS = 12, 14
COLOURS = ("#0b5fa5", "#c2410c", "#15803d", "#7e22ce")
"""Told apart also by people who see red and green alike."""
INK, GRID, PAPER = "#222222", "#dddddd", "#ffffff"
MAX_LEGEND_CHARACTERS = 26
MAX_DOTS = 24
FORMS: tuple[tuple[int, int], ...] = ((200, 2), (80, 2), (40, 2), (40, 1), (24, 1))
"""Most points a line and how fine it is drawn, tried in this order until the file is small enough."""


@dataclass(frozen=True)
class Panel:
    """One metric: its title, and a line for each name."""

    title: str
    lines: Sequence[tuple[str, Points]]


@dataclass(frozen=True)
class Picture:
    """A PNG file: how many of the panels are on it, and the points a line was averaged to at most."""

    data: bytes
    panels: int
    points: int


def small_png(panels: Sequence[Panel], limit_bytes: int) -> Picture:
    """The panels as a PNG file of at most `limit_bytes`: if need be of averaged lines, and of fewer panels.

    A single panel of four lines fits into 10 kB whatever its values are.
    """
    count, forms = len(panels), FORMS
    while True:
        for most, fine in forms:
            shown = [Panel(panel.title, _averaged(panel.lines, most)) for panel in panels[:count]]
            drawn = png(shown, fine)
            if len(drawn) <= limit_bytes:
                return Picture(drawn, count, most)
        if count == 1:
            return Picture(drawn, count, most)
        count, forms = max(1, min(count - 1, count * limit_bytes // len(drawn))), FORMS[-2:]


def _averaged(lines: Sequence[tuple[str, Points]], most: int) -> list[tuple[str, Points]]:
    return [(name, average(line, most)) for name, line in lines]


def average(line: Points, most: int) -> Points:
    """At most `most` points: means of equal parts of the line; its first and last point stay as they are."""
    if len(line) <= most:
        return line
    edges = [1 + index * (len(line) - 2) // (most - 2) for index in range(most - 1)]
    parts = [line[start:end] for start, end in pairwise(edges)]
    means = [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]
    return [line[0], *means, line[-1]]


def png(panels: Sequence[Panel], fine: int = 2) -> bytes:
    """The panels one below the other, as a PNG file; drawn `fine` times as large as they are shown."""
    from PIL import Image, ImageDraw, ImageFont

    size = (WIDTH, HEIGHT_OF_PANEL * len(panels))
    image = Image.new("RGB", (size[0] * fine, size[1] * fine), PAPER)
    small, large = (_font(ImageFont.load_default(pixels * fine)) for pixels in (FONT_PIXELS, TITLE_PIXELS))
    draw = ImageDraw.Draw(image)
    for index, panel in enumerate(panels):
        _Canvas(draw, index * HEIGHT_OF_PANEL, fine, small, large).panel(panel)
    palette = Image.new("P", (1, 1))
    palette.putpalette(_palette())
    shrunk = image.resize(size, Image.Resampling.BOX).quantize(palette=palette, dither=Image.Dither.NONE)
    file = io.BytesIO()
    shrunk.save(file, "PNG", optimize=True)
    return file.getvalue()


def _palette() -> list[int]:
    """Paper, grid, three shades of ink, and each colour in two."""
    shades = [(PAPER, 1.0), (GRID, 1.0), *((INK, share) for share in (1.0, 0.66, 0.33))]
    shades += [(colour, share) for colour in COLOURS for share in (1.0, 0.5)]
    return [round(255 - share * (255 - int(colour[at : at + 2], 16))) for colour, share in shades for at in (1, 3, 5)]


def _font(font: object) -> FreeTypeFont:
    from PIL.ImageFont import FreeTypeFont

    if not isinstance(font, FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType, so it has no letters of a readable size")
    return font


class _Canvas:
    """Draws one panel; coordinates are those of the finished picture."""

    def __init__(self, draw: ImageDraw, top: int, fine: int, small: FreeTypeFont, large: FreeTypeFont) -> None:
        self._draw, self._top, self._fine, self._small, self._large = draw, top, fine, small, large

    def panel(self, panel: Panel) -> None:
        """Title, axes with round ticks, lines, legend."""
        self._text(LEFT, 14, panel.title, self._large, "lm", INK)
        if self._top == 0:  # the first panel names the lines for all
            self._legend([name for name, _ in panel.lines])
        points = [point for _, line in panel.lines for point in line]
        if not points:
            self._text(WIDTH / 2, HEIGHT_OF_PANEL / 2, "no values recorded", self._large, "mm", INK)
            return
        across, up = Scale.over([x for x, _ in points]), Scale.over([y for _, y in points])
        self._axes(across, up)
        for index, (_, line) in enumerate(panel.lines):
            self._line(line, across, up, COLOURS[index % len(COLOURS)])

    def _legend(self, names: Sequence[str]) -> None:
        for index, name in enumerate(names):
            x = LEFT + index * (WIDTH - LEFT - RIGHT) / len(COLOURS)
            self._stroke([(x, 32), (x + 14, 32)], COLOURS[index % len(COLOURS)], 3)
            self._text(x + 19, 32, name[:MAX_LEGEND_CHARACTERS], self._small, "lm", INK)

    def _axes(self, across: Scale, up: Scale) -> None:
        for tick in up.ticks:
            y = _y(tick, up)
            self._stroke([(LEFT, y), (WIDTH - RIGHT, y)], GRID, 1)
            self._text(LEFT - 7, y, tick_label(tick), self._small, "rm", INK)
        for tick in across.ticks:
            x = _x(tick, across)
            self._stroke([(x, HEIGHT_OF_PANEL - BOTTOM), (x, HEIGHT_OF_PANEL - BOTTOM + 4)], INK, 1)
            self._text(x, HEIGHT_OF_PANEL - BOTTOM + 13, tick_label(tick), self._small, "mm", INK)
        self._stroke([(LEFT, HEIGHT_OF_PANEL - BOTTOM), (WIDTH - RIGHT, HEIGHT_OF_PANEL - BOTTOM)], INK, 1)
        self._text((LEFT + WIDTH - RIGHT) / 2, HEIGHT_OF_PANEL - 8, "step", self._small, "mm", INK)

    def _line(self, line: Points, across: Scale, up: Scale, colour: str) -> None:
        places = [(_x(x, across), _y(y, up)) for x, y in line]
        if len(places) > 1:
            self._stroke(places, colour, 2)
        for x, y in places if len(places) <= MAX_DOTS else ():
            box = [(value + offset) * self._fine for offset in (-2.5, 2.5) for value in (x, self._top + y)]
            self._draw.ellipse((box[0], box[1], box[2], box[3]), fill=colour)

    def _stroke(self, places: Sequence[tuple[float, float]], colour: str, width: int) -> None:
        scaled = [(x * self._fine, (self._top + y) * self._fine) for x, y in places]
        self._draw.line(scaled, fill=colour, width=width * self._fine, joint="curve")

    def _text(self, x: float, y: float, text: str, font: FreeTypeFont, anchor: str, colour: str) -> None:
        self._draw.text((x * self._fine, (self._top + y) * self._fine), text, fill=colour, font=font, anchor=anchor)


def _x(value: float, scale: Scale) -> float:
    return LEFT + scale.place(value) * (WIDTH - LEFT - RIGHT)


def _y(value: float, scale: Scale) -> float:
    return HEIGHT_OF_PANEL - BOTTOM - scale.place(value) * (HEIGHT_OF_PANEL - TOP - BOTTOM)
