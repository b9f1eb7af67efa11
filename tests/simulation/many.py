"""Many schedules, over all cores."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from tests.simulation.planted import PLANTED
from tests.simulation.schedule import SOUND, run_schedule, told

CHUNK = 100


@dataclass
class Summary:
    """What a number of schedules came to.

    Attributes:
        broken: the seeds that broke a promise, each with the end of its schedule.
        figures: how often each fault and each event came to pass.
    """

    schedules: int = 0
    turns: int = 0
    runs: int = 0
    broken: dict[int, str] = field(default_factory=dict)
    figures: Counter[str] = field(default_factory=Counter)

    def add(self, other: Summary) -> None:
        """Take in the sum of others."""
        self.schedules += other.schedules
        self.turns += other.turns
        self.runs += other.runs
        self.broken |= other.broken
        self.figures.update(other.figures)


def run_many(seeds: Sequence[int], processes: int | None = None) -> Iterator[Summary]:
    """Run the schedules of these seeds; gives the sum so far after each hundred."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    total = Summary()
    with _pool(processes) as pool:
        for part in pool.map(_run_chunk, chunks):
            total.add(part)
            yield total


def find_planted(names: Sequence[str], most: int, processes: int | None = None) -> dict[str, tuple[int, str] | None]:
    """For each planted fault: how many seeds it took to find, and what was broken; None when it was not found."""
    with _pool(processes) as pool:
        return dict(zip(names, pool.map(_find, names, [most] * len(names)), strict=True))


def _pool(processes: int | None) -> ProcessPoolExecutor:
    # not forked: a process that has MLX loaded has threads
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes or os.cpu_count() or 1, mp_context=context, initializer=_settle)


def _settle() -> None:
    """The libraries are no garbage: without this every collection would look through them again."""
    gc.collect()
    gc.freeze()


def _run_chunk(seeds: Sequence[int]) -> Summary:
    total = Summary()
    for seed in seeds:
        outcome = run_schedule(seed, SOUND)
        broken = {} if outcome.violation is None else {seed: told(outcome)}
        total.add(Summary(1, outcome.turns, outcome.runs, broken, Counter(outcome.figures)))
    return total


def _find(name: str, most: int) -> tuple[int, str] | None:
    for seed in range(most):
        found = run_schedule(seed, PLANTED[name]).violation
        if found is not None:
            return seed + 1, found
    return None
