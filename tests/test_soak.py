"""The soak in small: it starts, kills, resumes, and finds no broken promise. The whole: `benchmarks/soak.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "soak.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_few_runs_of_four_servers_with_kills_stops_and_resumes_leave_nothing_behind(tmp_path: Path) -> None:
    result = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--runs", "6", "--seed", "3", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(result.read_text(encoding="utf-8"))
    assert figures["runs"] == 6 and sum(figures["states"].values()) == 6 and figures["workers"] >= 6
    assert figures["kills"] + figures["stops"] > 0
