"""A chart as inline SVG: no script, no style sheet, no font of its own."""

from __future__ import annotations

from html import escape

from opd_core.control.axes import Points, Scale, tick_label
from opd_core.control.report.content import Chart

WIDTH, HEIGHT = 680, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 40
COLOURS = ("#0b5fa5", "#c2410c", "#15803d", "#7e22ce")
"""Told apart also by people who see red and green alike; the legend names them in order."""
MAX_MARKED = 60


def svg(chart: Chart) -> str:
    """The chart, with its own title for screen readers; curves without a point are left out."""
    curves = [curve for curve in chart.curves if curve.points]
    everything = [point for curve in curves for point in curve.points]
    across, up = Scale.over([x for x, _ in everything], 6), Scale.over([y for _, y in everything])
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(chart.title)}</title>",
        f'<text x="{LEFT}" y="16" class="t">{escape(f"{chart.title} ({chart.unit})")}</text>',
        *_axes(across, up),
    ]
    for index, curve in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{_path(curve.points, across, up)}"/>'
        )
        parts += _marks(curve.points, across, up, colour)
        x = LEFT + 8 + 170 * index
        parts.append(f'<rect x="{x}" y="23" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 19}" y="29" class="l">{escape(curve.name)}</text>')
    return "".join([*parts, "</svg>"])


def _axes(across: Scale, up: Scale) -> list[str]:
    parts = []
    for tick in up.ticks:
        y = _y(tick, up)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="g"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" class="l">{tick_label(tick)}</text>')
    for tick in across.ticks:
        x = _x(tick, across)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle" class="l">{tick_label(tick)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*parts, f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle" class="l">step</text>']


def _path(points: Points, across: Scale, up: Scale) -> str:
    return " ".join(f"{_x(x, across):.1f},{_y(y, up):.1f}" for x, y in points)


def _marks(points: Points, across: Scale, up: Scale, colour: str) -> list[str]:
    """Dots where the points are few: a single one has no line."""
    shown = points if len(points) <= MAX_MARKED else ()
    return [f'<circle cx="{_x(x, across):.1f}" cy="{_y(y, up):.1f}" r="2.4" fill="{colour}"/>' for x, y in shown]


def _x(value: float, scale: Scale) -> float:
    return LEFT + scale.place(value) * (WIDTH - LEFT - RIGHT)


def _y(value: float, scale: Scale) -> float:
    return HEIGHT - BOTTOM - scale.place(value) * (HEIGHT - TOP - BOTTOM)
