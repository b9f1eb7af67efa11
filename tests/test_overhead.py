"""The overhead benchmark: its arithmetic, and its second part in small. The whole: `benchmarks/overhead.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.overhead import broken_promises, overhead

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "overhead.py"


def line(other_seconds: float) -> dict[str, float]:
    phases = {"rollout_seconds": 0.5, "teacher_seconds": 0.2, "update_seconds": 0.3 - other_seconds}
    return {**phases, "other_seconds": other_seconds}


def test_overhead_is_what_passed_beside_the_three_phases_and_the_first_step_does_not_count() -> None:
    found = overhead([line(0.3), line(0.01), line(0.03)], [50.0, 51.0, 52.1])
    assert found["steps"] == 2
    assert found["all_percents"] == pytest.approx([1.0, 3.0])
    assert found["median_percent"] == pytest.approx(2.0)
    assert found["accounted_percent"] == pytest.approx(100 * 0.04 / 2.1)
    assert found["clock_percent"] == pytest.approx(100 * (2.1 - 0.99 - 0.97) / 2.1)  # what the lines miss as well


def test_a_promise_is_broken_beyond_its_bound_alone() -> None:
    kept = {"get_status": {"ratio": 1.2}, "get_metrics": {"ratio": 0.7}}
    assert broken_promises({"steps": {"median_percent": 2.0, "total_percent": 2.0}, "history": kept}) == []
    broken = {"get_status": {"ratio": 1.21}, "get_metrics": {"ratio": 1.0}}
    assert broken_promises({"history": broken}) == ["get_status costs 1.21 times as much"]
    assert broken_promises({"steps": {"median_percent": 1.0, "total_percent": 2.1}}) == ["overhead is 2.10 % of a step"]


@pytest.mark.slow
def test_the_history_part_runs_in_small(tmp_path: Path) -> None:
    result = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--only", "history", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    history = json.loads(result.read_text(encoding="utf-8"))["history"]
    assert history["calls"] == 20 and min(history[tool]["ratio"] for tool in ("get_status", "get_metrics")) > 0
