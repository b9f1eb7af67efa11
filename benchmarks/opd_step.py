"""One step of on-policy distillation, ours beside its peers, in one run, in turns.

Every contestant is a process of its own that stays alive and does one step when asked; only one works at a time.
Before anything is timed, all do one update on the same completions, and loss and gradient norm must agree. Works:

    a  the reference: 8 prompts of 128 tokens, 64 new tokens each, LoRA r=8 on q_proj and v_proj, full reverse KL
    b  2 prompts of 512 tokens, 4 rollouts each
    c  as a, with a fixed context of 512 tokens at the teacher, and beside it the same without
    d  the embedded demo's own step: its prompts, adapter, context and SFT mix-in

TRL runs on a and b only. On a CPU the model is SmolLM2-135M in float32, on cuda and metal the shape of Qwen2 1.5B with
random weights in bfloat16. Exit code 1 when the work is not the same or a promise (`opd_step_parts/tables.py`) is
broken. The peers' environment and the models lie in `.bench`, made on first use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks are no installed package
from benchmarks.opd_step_parts.contestants import BARE, CHOICES, OURS, TRL, TRL_BF16, Child, forget_threads
from benchmarks.opd_step_parts.four_works import QUICK, Sizes, Works, model_folder, without_context
from benchmarks.opd_step_parts.machine import floor_seconds
from benchmarks.opd_step_parts.tables import (
    broken_promises,
    check_faults,
    check_lines,
    context_percent,
    ratios,
    summary,
    table,
)
from benchmarks.opd_step_parts.works import Work
from benchmarks.peers.environment import ensure_peers, pins

WARM_UP_STEPS = 1


def contestants_of(work: Work, chosen: list[str]) -> dict[str, Work]:
    """Who takes part in a work, and with which work."""
    found = {}
    for name in chosen:
        if name in (TRL, TRL_BF16) and work.name not in ("a", "b"):
            continue
        if name == TRL and work.device != "cpu":
            continue
        found[name] = replace(work, dtype="bfloat16") if name == TRL_BF16 else work
        if name == OURS and work.name == "c":
            found[BARE] = without_context(work)
    return found


def run_work(work: Work, chosen: list[str], steps: int, rates: dict[str, float], folder: Path) -> dict[str, Any]:
    """Start all contestants, check, warm up, measure in turns."""
    print(f"\n{work.name}: {work.title}", flush=True)
    children: list[Child] = []
    with ExitStack() as stack:
        for name, own in contestants_of(work, chosen).items():
            stem = f"{work.name}-{name.replace(' ', '-').replace(',', '')}"
            own.write(folder / f"{stem}.json")
            child = Child(name, work.device, folder / f"{stem}.json", work.threads, folder / f"{stem}.log")
            stack.callback(child.close)
            children.append(child)
        checks = {child.name: child.ask("check") for child in children}
        faults = check_faults(checks, work.dtype != "float32")
        print("\n".join(check_lines(checks)), flush=True)
        rounds: dict[str, list[dict[str, Any]]] = {child.name: [] for child in children}
        for number in range(0 if faults else WARM_UP_STEPS + steps):
            for child in children:
                found = child.ask("step")
                if number >= WARM_UP_STEPS:
                    rounds[child.name].append(found)
    result: dict[str, Any] = {"title": work.title, "checks": checks, "broken": faults, "contestants": {}}
    if not faults:
        result["contestants"] = {name: summary(found) for name, found in rounds.items()}
        result["floor"] = floor_seconds(work, rates)
        result["context_percent"] = context_percent(result["contestants"])
        ratios(result["contestants"], result["floor"])
        print(table(result), flush=True)
    return result


def measure_machine(device: str, folder: Path) -> dict[str, float]:
    """The rates that the floor is made of, measured in a child with every thread."""
    child = Child("floor", device, None, os.cpu_count() or 1, folder / "floor.log")
    child.close()
    rates: dict[str, float] = child.ready
    print(f"This machine: {rates['flops'] / 1e9:.0f} GFLOP/s, {rates['bandwidth'] / 1e9:.1f} GB/s")
    return rates


def report(options: argparse.Namespace, rates: dict[str, float]) -> dict[str, Any]:
    """What was run where, with which versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": options.device,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("mlx", "mlx-lm")}
        | {"python": platform.python_version(), "peers": pins()},
        "rates": rates,
        "steps": options.steps,
        "works": {},
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", default="a,b,c,d", help="letters, with commas")
    parser.add_argument("--contestants", default=",".join(CHOICES), help=f"of {', '.join(CHOICES)}, with commas")
    parser.add_argument("--steps", type=int, default=3, help="rounds that are measured, after one to warm up")
    parser.add_argument("--device", choices=("cpu", "cuda", "metal"), default="cpu")
    parser.add_argument("--model", type=Path, help="another model folder (promises are then not judged)")
    parser.add_argument("--quick", action="store_true", help="everything small: a test of the script, no measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    unknown = sorted({*options.contestants.split(",")} - {*CHOICES}) + sorted({*options.works.split(",")} - {*"abcd"})
    if unknown or options.steps < 1:
        parser.error(f"unknown: {unknown[0]}" if unknown else "--steps is at least 1")
    return options


def main() -> int:
    """Run the works that were asked for."""
    options = parse()
    forget_threads()
    chosen = [CHOICES[name] for name in options.contestants.split(",")]
    if {TRL, TRL_BF16} & {*chosen}:
        ensure_peers()
    model = options.model or model_folder(options.device)
    sizes = QUICK if options.quick else Sizes()
    is_judged = options.device == "cpu" and options.model is None and not options.quick
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="opd_step_") as scratch:
        folder = Path(scratch)
        rates = measure_machine(options.device, folder)
        figures = report(options, rates)
        made = Works(model.absolute(), options.device, sizes, 1 + WARM_UP_STEPS + options.steps, folder)
        for name in options.works.split(","):
            found = run_work(made.make(name), chosen, options.steps, rates, folder)
            figures["works"][name] = found
            if is_judged:
                found["broken"] += broken_promises(name, found["contestants"], found.get("context_percent"))
            broken += found["broken"]
            if options.json is not None:
                options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    kept = "All promises kept." if is_judged else "The same work everywhere; promises are not judged here."
    print("\n" + ("\n".join(f"BROKEN: {words}" for words in broken) or kept))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
