"""The answer of `plot_metrics`: which metrics, their lines as text, and the picture as an image block."""

from __future__ import annotations

import base64
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mcp_types import CallToolResult, ImageContent, TextContent

from opd_core.control.evidence import numbers
from opd_core.control.sparkline import sparkline
from opd_core.errors import ConfigError
from opd_core.state.metrics import METRICS, Series
from server.answers.picture import Panel, Picture, small_png
from server.answers.reply import MAX_RESULT_BYTES, data_bytes, reply
from server.answers.words import number, tidy
from server.schemas.studies import CurveEntry, PlotAnswer, PlotEntry

MAX_POINTS = 512
SPARKLINE_COLUMNS = 24
RESERVED_BYTES = 1_200
"""For the envelope of the result and what the picture leaves out."""
DEFAULT_PANELS = 3
USUAL_KEYS = (
    "task_score", "kl_divergence_mean", "reference_nll", "total_loss", "completion_tokens_mean", "student_entropy",
)  # fmt: skip
"""Plotted when nothing is asked for: the first three of them that have values."""
NO_NUMBERS = frozenset({"step", "total_steps", "method", "guidance_level", "checkpoint_path", "primary_metric"})
EVALUATION_FIRST = frozenset({"held_out_prompts", "task_score", "reverse_kl", "teacher_agreement_pct", "reference_nll",
                              "best_step", "best_value", "eval_seconds"})  # fmt: skip
Lines = Sequence[Mapping[str, Any]]
Read = Callable[[str, Series], Lines]


def plotted(run_ids: Sequence[str], keys: Sequence[str], series: Series | None, read: Read) -> PlotAnswer:
    """The chosen metrics of the runs.

    Args:
        read: the lines of one run's series.

    Raises:
        ConfigError: a key is no metric that can be drawn.
    """
    for key in keys:
        _check(key)
    lines: dict[tuple[str, Series], Lines] = {}
    for run_id in run_ids:
        for name in ("train", "eval"):
            lines[run_id, name] = read(run_id, name)
    chosen = list(dict.fromkeys(keys)) or _telling(run_ids, series, lines)
    plots = [_plot(key, run_ids, series or _series_of(key, run_ids, lines), lines) for key in chosen]
    panels = [Panel(f"{plot.key} ({plot.unit})", _panel_lines(plot, lines)) for plot in plots]
    empty = [plot.key for plot in plots if not any(curve.points for curve in plot.curves)]
    answer = PlotAnswer(
        summary=_summary(run_ids, plots, empty),
        next_step=f"Show the user the picture. Call diagnose_run with run_id {run_ids[0]} for what it means, or "
        "get_metrics for the numbers.",
        run_ids=list(run_ids),
        plots=plots,
        png_base64="",
        cut=None,
    )
    text_bytes = data_bytes([answer.summary, answer.next_step, *plot_facts(answer)])
    picture = small_png(panels, (MAX_RESULT_BYTES - RESERVED_BYTES - text_bytes) * 3 // 4)
    encoded = base64.b64encode(picture.data).decode("ascii")
    return answer.model_copy(update={"png_base64": encoded, "cut": _cut(plots, picture)})


def _cut(plots: Sequence[PlotEntry], picture: Picture) -> str | None:
    """What the picture does not show as it is, so that it stays small enough for a chat."""
    notes = [f"Not on the picture: {plot.key}; ask for fewer keys at a time." for plot in plots[picture.panels :]]
    if any(curve.points > picture.points for plot in plots for curve in plot.curves):
        notes.append(f"Lines of more than {picture.points} points are drawn as means of {picture.points} parts.")
    return " ".join(notes) or None


def _check(key: str) -> None:
    if key in METRICS and key not in NO_NUMBERS:
        return
    near = difflib.get_close_matches(key, METRICS.keys() - NO_NUMBERS, n=3)
    hint = f" Did you mean {', '.join(near)}?" if near else f" Often drawn: {', '.join(USUAL_KEYS)}."
    raise ConfigError(f"keys: {key!r} is no metric with numbers.{hint}", field="keys")


def _telling(run_ids: Sequence[str], series: Series | None, lines: Mapping[tuple[str, Series], Lines]) -> list[str]:
    kept = []
    for key in USUAL_KEYS:
        wanted = series or _series_of(key, run_ids, lines)
        if any(numbers([dict(line) for line in lines[run_id, wanted]], key) for run_id in run_ids):
            kept.append(key)
    if "kl_divergence_mean" in kept and "total_loss" in kept:
        kept.remove("total_loss")  # the same curve but for its weight
    return kept[:DEFAULT_PANELS] or [USUAL_KEYS[1]]


def _series_of(key: str, run_ids: Sequence[str], lines: Mapping[tuple[str, Series], Lines]) -> Series:
    """Whichever has the metric; the training lines when both do, except for what only an evaluation measures."""
    if key in EVALUATION_FIRST:
        return "eval"
    has_train = any(line.get(key) is not None for run_id in run_ids for line in lines[run_id, "train"])
    has_eval = any(line.get(key) is not None for run_id in run_ids for line in lines[run_id, "eval"])
    return "eval" if has_eval and not has_train else "train"


def _plot(key: str, run_ids: Sequence[str], series: Series, lines: Mapping[tuple[str, Series], Lines]) -> PlotEntry:
    metric = METRICS[key]
    better = {"up": ", more is better", "down": ", less is better", "neither": ""}[metric.direction]
    curves = [_curve(run_id, _values(lines[run_id, series], key)) for run_id in run_ids]
    return PlotEntry(key=key, series=series, unit=metric.unit + better, meaning=metric.meaning, curves=curves)


def _values(lines: Lines, key: str) -> list[float]:
    return [value for _, value in numbers([dict(line) for line in lines], key)]


def _curve(run_id: str, values: list[float]) -> CurveEntry:
    figures = (values[0], min(values), max(values), values[-1]) if values else (None,) * 4
    first, low, high, last = (tidy(value) for value in figures)
    return CurveEntry(
        run_id=run_id,
        points=len(values),
        first=first,
        min=low,
        max=high,
        last=last,
        sparkline=sparkline(values, SPARKLINE_COLUMNS),
    )


def _panel_lines(
    plot: PlotEntry, lines: Mapping[tuple[str, Series], Lines]
) -> list[tuple[str, list[tuple[int, float]]]]:
    return [
        (curve.run_id, numbers([dict(line) for line in lines[curve.run_id, plot.series]], plot.key))
        for curve in plot.curves
    ]


def _summary(run_ids: Sequence[str], plots: Sequence[PlotEntry], empty: Sequence[str]) -> str:
    parts = [
        f"{plot.key} {'of ' + curve.run_id + ' ' if len(run_ids) > 1 else ''}went from {number(curve.first)} to "
        f"{number(curve.last)}"
        for plot in plots
        for curve in plot.curves
        if curve.points > 1
    ]
    name = f"Run {run_ids[0]}" if len(run_ids) == 1 else f"Runs {', '.join(run_ids)}"
    text = f"{name}: {'; '.join(parts)}." if parts else f"{name}: too few values for a curve yet."
    return text + (f" There are no values for {', '.join(empty)}." if empty else "")


def plot_facts(answer: PlotAnswer) -> list[str]:
    """One line a curve."""
    lines = [
        f"- {plot.key} ({plot.unit}; {plot.series}), {curve.run_id}, {curve.points} points: {curve.sparkline}"
        for plot in answer.plots
        for curve in plot.curves
    ]
    return lines + ([f"- {answer.cut}"] if answer.cut else [])


def image_reply(answer: PlotAnswer, facts: Iterable[str]) -> CallToolResult:
    """The picture and the text; no structured content, which some hosts would show in place of both."""
    text = reply(answer, facts).content
    image = ImageContent(type="image", data=answer.png_base64, mime_type="image/png")
    return CallToolResult(content=[image, *(block for block in text if isinstance(block, TextContent))])
