"""How cost and peak memory of our step grow, and that memory does not grow with vocabulary × length.

A small trunk with random weights (4 layers, width 128; `opd_step_parts/random_model.py`) takes the step of
`opd_step_parts/ours.py`, the teacher being the same base with a short context. One thing grows at a time; every point
is a process of its own: one step to warm up, then `--steps` that are measured. Peak memory is MLX's own count, beside
it the process's peak RSS. A fitted exponent e says: k times as much of it costs k^e times.

Promise: with 8 × 1,024 completion tokens, peak memory at a vocabulary of 151,936 is within 15 % of that at 8,192, the
embedding's own size aside. Exit code 1 only when it is broken.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks are no installed package
from benchmarks.opd_step_parts import making
from benchmarks.opd_step_parts.contestants import OURS, ROOT, Child, forget_threads
from benchmarks.opd_step_parts.tables import PHASES, summary
from benchmarks.opd_step_parts.works import Work

CONTEXT = "Answer in one short sentence."
SMALL_VOCABULARY, LARGE_VOCABULARY = 8192, 151936
MOST_GROWTH = 1.15
FIGURES = (*PHASES, "mlx_bytes", "rss_bytes")


@dataclass(frozen=True)
class Point:
    """One size of a step."""

    prompts: int = 4
    rollouts_per_prompt: int = 2
    prompt_tokens: int = 64
    new_tokens: int = 64
    vocabulary: int = SMALL_VOCABULARY
    lora_rank: int = 8


FULL: dict[str, tuple[int, ...]] = {
    "prompts": (2, 4, 8, 16),
    "rollouts_per_prompt": (1, 2, 4, 8),
    "prompt_tokens": (64, 128, 256, 512),
    "new_tokens": (32, 64, 128, 256),
    "vocabulary": (SMALL_VOCABULARY, 32768, 65536, LARGE_VOCABULARY),
    "lora_rank": (4, 16, 64),
}
QUICK: dict[str, tuple[int, ...]] = {"new_tokens": (8, 32)}
FLAT = Point(prompts=8, rollouts_per_prompt=1, new_tokens=1024)


class Bench:
    """Takes points; keeps one model folder a vocabulary."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder, self._steps = folder, steps

    def measure(self, point: Point) -> dict[str, float]:
        """Median seconds by phase, and both peaks, of a point."""
        work = self._work(point)
        file = self._folder / "work.json"
        work.write(file)
        child = Child(OURS, work.device, file, work.threads, self._folder / "child.log")
        try:
            rounds = [child.ask("step") for _ in range(1 + self._steps)]
        finally:
            child.close()
        found = summary(rounds[1:])
        memory = {"mlx_bytes": found["peak_device_bytes"], "rss_bytes": found["peak_rss_bytes"]}
        return {phase: found[phase] for phase in PHASES} | memory

    def model(self, vocabulary: int) -> Path:
        """The model of a vocabulary, made when it is first asked for."""
        model = self._folder / f"model-{vocabulary}"
        if not model.exists():
            command = [sys.executable, "-m", "benchmarks.opd_step_parts.random_model", str(model)]
            subprocess.run([*command, "--vocab", str(vocabulary)], check=True, cwd=ROOT)
        return model

    def _work(self, point: Point) -> Work:
        model = self.model(point.vocabulary)
        tokenizer: Any = AutoTokenizer.from_pretrained(str(model))
        lora = self._folder / "adapter.safetensors"
        keys = making.write_adapter(model, None, point.lora_rank, lora)
        batches = tuple(
            tuple(
                making.sized_prompt(tokenizer, point.prompt_tokens, f"{batch}/{row}", CONTEXT)
                for row in range(point.prompts)
            )
            for batch in range(2 + self._steps)
        )
        return Work(
            name="scaling",
            title="",
            device="cpu",
            dtype="float32",
            threads=os.cpu_count() or 1,
            model=str(model),
            teacher=str(model),
            lora=str(lora),
            lora_rank=point.lora_rank,
            lora_scale=2.0,
            lora_keys=keys,
            learning_rate=1e-5,
            rollouts_per_prompt=point.rollouts_per_prompt,
            new_tokens=point.new_tokens,
            system_prompt=CONTEXT,
            examples=(),
            sft_weight=0.0,
            batches=batches,
            fixed=(),
        )


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size, by least squares."""
    slope, _ = statistics.linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs])
    return slope


def scale(bench: Bench, axes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Let one thing grow at a time."""
    found: dict[str, Any] = {}
    for axis, sizes in axes.items():
        print(f"\n{axis:20}" + "".join(f"{phase + ' s':>12}" for phase in PHASES) + f"{'MLX MB':>10}{'RSS MB':>10}")
        points = []
        for size in sizes:
            points.append(bench.measure(replace(Point(), **{axis: size})))
            print(f"{size:>20,}{_cells(points[-1])}", flush=True)
        exponents = {figure: exponent(sizes, [point[figure] for point in points]) for figure in FIGURES}
        cells = "".join(f"{exponents[phase]:>12.2f}" for phase in PHASES)
        print(f"{'exponent':20}{cells}{exponents['mlx_bytes']:>10.2f}{exponents['rss_bytes']:>10.2f}", flush=True)
        found[axis] = {"sizes": sizes, "points": points, "exponents": exponents}
    return found


def _cells(point: dict[str, float]) -> str:
    seconds = "".join(f"{point[phase]:>12.3f}" for phase in PHASES)
    return f"{seconds}{point['mlx_bytes'] / 1e6:>10.1f}{point['rss_bytes'] / 1e6:>10.1f}"


def flatness(bench: Bench, point: Point, large: int) -> dict[str, float]:
    """Peak memory at a small and a large vocabulary, each less its embedding, which both models share."""
    peaks = []
    print(f"\n{point.prompts} × {point.new_tokens:,} completion tokens, the embedding aside:")
    for vocabulary in (point.vocabulary, large):
        found = bench.measure(replace(point, vocabulary=vocabulary))
        embedding = 4.0 * vocabulary * embedding_width(bench, vocabulary)
        peaks.append(found["mlx_bytes"] - embedding)
        words = f"{found['mlx_bytes'] / 1e6:.1f} MB less an embedding of {embedding / 1e6:.1f} MB"
        step = f"step {found['step']:.1f} s"
        print(f"  vocabulary {vocabulary:>8,}: {peaks[-1] / 1e6:.1f} MB ({words}), {step}", flush=True)
    print(f"  {peaks[1] / peaks[0]:.3f} times, promised at most {MOST_GROWTH}")
    return {"small_bytes": peaks[0], "large_bytes": peaks[1], "growth": peaks[1] / peaks[0]}


def embedding_width(bench: Bench, vocabulary: int) -> int:
    """Columns of the embedding, from the model's file."""
    return making.weight_shapes(bench.model(vocabulary))["model.embed_tokens.weight"][1]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="measured steps a point, after one to warm up")
    parser.add_argument("--only", choices=("growth", "flat"), help="one part")
    parser.add_argument("--quick", action="store_true", help="two small points: a test of the script, no measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args()


def main() -> int:
    """Measure, print, judge."""
    options = parse()
    forget_threads()
    figures: dict[str, Any] = {"base": asdict(Point()), "axes": {}, "flat": None}
    with tempfile.TemporaryDirectory(prefix="opd_scaling_") as scratch:
        bench = Bench(Path(scratch), options.steps)
        if options.only != "flat":
            figures["axes"] = scale(bench, QUICK if options.quick else FULL)
        if options.only != "growth":
            point = replace(FLAT, prompts=2, new_tokens=16) if options.quick else FLAT
            large = 2 * SMALL_VOCABULARY if options.quick else LARGE_VOCABULARY
            figures["flat"] = flatness(Bench(Path(scratch), 1), point, large)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    if options.quick or figures["flat"] is None:
        return 0
    is_broken = figures["flat"]["growth"] > MOST_GROWTH
    print("\nBROKEN: peak memory grows with the vocabulary." if is_broken else "\nThe promise is kept.")
    return 1 if is_broken else 0


if __name__ == "__main__":
    sys.exit(main())
