"""Medians, ratios and promises of the step benchmark, and how they are printed."""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks.opd_step_parts.contestants import BARE, LOOP, OURS, TRL, TRL_BF16

PHASES = ("rollout", "teacher", "update", "step")
TOLERANCE, TOLERANCE_BF16 = 1e-3, 5e-2
"""Relative, on loss and gradient norm. bfloat16's own rounding alone is more than the first."""
MOST_TIME = {("a", TRL): 0.75, ("a", LOOP): 0.6, ("b", TRL): 0.4}
MOST_MEMORY = {("a", TRL): 0.6}
MOST_CONTEXT_PERCENT = 5.0
"""Promises about ours: its share of a peer's step, of its peak RSS, and what a fixed context costs in % of a step."""


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One contestant's medians over its rounds; memory is the peak of its life."""
    figures: dict[str, Any] = {phase: statistics.median(found[phase] for found in rounds) for phase in PHASES}
    figures["new_tokens"] = rounds[-1]["new_tokens"]
    figures["new_tokens_per_second"] = figures["new_tokens"] / figures["step"]
    figures["peak_rss_bytes"] = rounds[-1]["peak_rss_bytes"]
    figures["peak_device_bytes"] = rounds[-1].get("peak_device_bytes")
    figures["rounds"] = rounds
    return figures


def check_faults(checks: dict[str, dict[str, float]], is_bf16: bool) -> list[str]:
    """Which contestants compute something else than the first of TRL fp32, the loop, TRL bf16."""
    same = {name: found for name, found in checks.items() if name != BARE}
    reference = next((name for name in (TRL, LOOP, TRL_BF16) if name in same), None)
    faults = []
    for name, found in same.items() if reference else ():
        tolerance = TOLERANCE_BF16 if is_bf16 or name == TRL_BF16 else TOLERANCE
        wanted = same[str(reference)]
        apart = [abs(found[key] - wanted[key]) / abs(wanted[key]) for key in ("loss", "gradient_norm")]
        found["difference"] = next(filter(math.isnan, apart), max(apart))
        if not found["difference"] <= tolerance:
            faults.append(f"{name} differs from {reference} by {found['difference']:.1e}, more than {tolerance:g}")
    return faults


def ratios(contestants: dict[str, Any], floor: dict[str, float]) -> None:
    """Ours over each peer, and each over the floor, into the figures."""
    ours = contestants.get(OURS)
    for figures in contestants.values():
        figures["over_floor"] = figures["step"] / floor["step"]
        figures["share_of_matmul_rate"] = floor["matmul"] / figures["step"]
        if ours is not None and figures is not ours:
            figures["ours_over_it"] = ours["step"] / figures["step"]
            figures["ours_over_its_memory"] = ours["peak_rss_bytes"] / figures["peak_rss_bytes"]


def context_percent(contestants: dict[str, Any]) -> float | None:
    """What the teacher's context costs, in % of the step without it.

    Teacher and update only: the rollout never sees the context, and its noise would drown the rest.
    """
    if OURS not in contestants or BARE not in contestants:
        return None
    pairs = zip(contestants[OURS]["rounds"], contestants[BARE]["rounds"], strict=True)
    costs: list[float] = [
        100.0 * (found["teacher"] + found["update"] - bare["teacher"] - bare["update"]) / bare["step"]
        for found, bare in pairs
    ]
    return statistics.median(costs)


def broken_promises(name: str, contestants: dict[str, Any], context: float | None) -> list[str]:
    """What ours was to reach on a work and did not."""
    broken = []
    for promises, figure, words in (
        (MOST_TIME, "ours_over_it", "step"),
        (MOST_MEMORY, "ours_over_its_memory", "peak RSS"),
    ):
        for (work, peer), most in promises.items():
            found = contestants.get(peer, {}).get(figure) if work == name else None
            if found is not None and found > most:
                broken.append(f"work {name}: {words} is {found:.2f} × {peer}'s, promised at most {most}")
    if context is not None and context > MOST_CONTEXT_PERCENT:
        broken.append(f"work {name}: the context costs {context:.1f} % of a step, promised at most 5 %")
    return broken


def check_lines(checks: dict[str, dict[str, float]]) -> list[str]:
    """The same work? one line a contestant."""
    return [
        f"  {name:18} loss {found['loss']:.6f}  gradient norm {found['gradient_norm']:.6f}"
        + (f"  apart by {found['difference']:.1e}" if "difference" in found else "")
        for name, found in checks.items()
    ]


def table(work: dict[str, Any]) -> str:
    """One work's figures side by side."""
    head = f"{'seconds (medians)':18}" + "".join(f"{phase:>9}" for phase in PHASES)
    lines = [head + f"{'tok/s':>8}{'RSS GB':>8}{'dev. GB':>8}{'ours ÷':>8}{'RSS ÷':>7}{'÷ floor':>9}{'rate %':>8}"]
    for name, found in work["contestants"].items():
        cells = "".join(f"{found[phase]:>9.3f}" for phase in PHASES) + f"{found['new_tokens_per_second']:>8.1f}"
        cells += _gigabytes(found["peak_rss_bytes"]) + _gigabytes(found["peak_device_bytes"])
        cells += _ratio(found.get("ours_over_it"), 8) + _ratio(found.get("ours_over_its_memory"), 7)
        lines.append(f"{name:18}{cells}{_ratio(found['over_floor'], 9)}{100 * found['share_of_matmul_rate']:>8.1f}")
    lines.append(f"{'floor':18}" + "".join(f"{work['floor'][phase]:>9.3f}" for phase in PHASES))
    if work["context_percent"] is not None:
        lines.append(f"The teacher's context costs {work['context_percent']:.1f} % of a step without it.")
    return "\n".join(lines)


def _gigabytes(count: float | None) -> str:
    return f"{'':>8}" if count is None else f"{count / 1e9:>8.2f}"


def _ratio(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:>{width}.2f}"
