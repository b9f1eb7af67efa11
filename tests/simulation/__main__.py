"""`python -m tests.simulation`: many schedules and a table, or one seed again with every turn of it."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation.many import Summary, find_planted, run_many
from tests.simulation.planted import PLANTED
from tests.simulation.schedule import SOUND, run_schedule, told

MOST_FOR_PLANTED = 2000


def main() -> int:
    """Exit status 1 when a promise was broken or a planted fault was not found."""
    options = _parse()
    if options.seed is not None:
        outcome = run_schedule(options.seed, PLANTED[options.plant] if options.plant else SOUND)
        print(told(outcome, last=len(outcome.trace)))
        return int(outcome.violation is not None)
    began, total = time.monotonic(), Summary()
    for total in run_many(range(options.first, options.first + options.seeds), options.processes):
        print(f"\r{total.schedules} of {options.seeds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    _tell(total, time.monotonic() - began, options.processes or os.cpu_count() or 1)
    if options.no_planted:
        return int(bool(total.broken))
    found = find_planted(list(PLANTED), MOST_FOR_PLANTED, options.processes)
    print(f"\n{'planted fault':36} {'seeds':>5}  found as")
    for name, what in found.items():
        print(f"{name:36} {what[0] if what else '-':>5}  {what[1][:90] if what else 'NOT FOUND'}")
    return int(bool(total.broken) or None in found.values())


def _tell(total: Summary, seconds: float, processes: int) -> None:
    rows = {"schedules": total.schedules, "runs": total.runs, "turns": total.turns, **total.figures}
    for name, count in rows.items():
        print(f"{name:20} {count:>9,}")
    rate = total.schedules / seconds
    print(f"{'seconds':20} {seconds:>9.0f}   ({rate:.0f} schedules a second in {processes} processes)")
    print(f"{'broken promises':20} {len(total.broken):>9,}")
    for seed, end in list(total.broken.items())[:3]:
        print(f"\n{end}\nReplay: python -m tests.simulation --seed {seed}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, help="by default one a core")
    parser.add_argument("--no-planted", action="store_true", help="leave out the search for planted faults")
    parser.add_argument("--seed", type=int, help="run this one again and print every turn")
    parser.add_argument("--plant", choices=sorted(PLANTED), help="with --seed: with this fault in the code")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
