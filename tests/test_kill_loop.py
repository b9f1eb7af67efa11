"""The kill benchmark in small: it runs, kills, and finds no broken promise. The whole: `benchmarks/kill_loop.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.kill_points import can_trace, kill_at_every_call

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill_loop.py"


def test_a_publication_killed_at_some_of_its_calls_tears_and_loses_nothing() -> None:
    broken: list[str] = []
    kills: Counter[str] = Counter()
    kill_at_every_call("audit hook", 9, broken.append, lambda name: kills.update([name]))
    assert broken == [] and kills.total() >= 6


@pytest.mark.slow
@pytest.mark.skipif(not can_trace(), reason="needs strace")
def test_a_publication_killed_at_every_write_class_call_tears_and_loses_nothing() -> None:
    broken: list[str] = []
    kills: Counter[str] = Counter()
    kill_at_every_call("strace", 1, broken.append, lambda name: kills.update([name]))
    assert broken == [] and kills.total() > 100 and {"rename", "fsync", "mkdir", "openat"} <= set(kills)


@pytest.mark.slow
def test_a_few_kills_of_real_training_break_no_promise(tmp_path: Path) -> None:
    result = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(result.read_text(encoding="utf-8"))
    assert figures["kills"] >= 3 and figures["survivors equal to their twin"] >= 1
