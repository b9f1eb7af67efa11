"""The kill benchmark in small: it runs, kills, and finds no broken promise. The whole: `benchmarks/ledger_kill.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "ledger_kill.py"


@pytest.mark.slow
def test_a_few_kills_around_the_real_client_break_no_promise(tmp_path: Path) -> None:
    result = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(result.read_text(encoding="utf-8"))
    assert figures["kills"] >= 10 and figures["requests"] >= 100 and figures["settled"] > 0
    assert 0 < figures["bill_pico"] <= figures["spent_pico"] <= figures["limit_pico"]
