"""The scaling benchmark in small: one point, the fit, the promise. The whole: `benchmarks/scaling.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.scaling import Bench, Point, exponent, flatness

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "scaling.py"
TINY = Point(prompts=2, rollouts_per_prompt=1, new_tokens=4)


class Growing(Bench):
    """A step whose peak memory is its embeddings and `per_id` bytes for each id of the vocabulary."""

    def __init__(self, folder: Path, per_id: float) -> None:
        super().__init__(folder, 1)
        self._at, self._per_id = folder, per_id

    def model(self, vocabulary: int) -> Path:
        embedding = {"model.embed_tokens.weight": np.zeros((vocabulary, 128), np.float32)}
        save_file(embedding, self._at / "model.safetensors")
        return self._at

    def measure(self, point: Point) -> dict[str, float]:
        return {"mlx_bytes": 1e6 + point.vocabulary * (4 * 128 + self._per_id), "step": 1.0}


def test_a_point_is_measured_in_a_process_of_its_own_and_a_vocabulary_beyond_the_tokenizer_is_no_trouble(
    tmp_path: Path,
) -> None:
    found = Bench(tmp_path, 1).measure(TINY)
    assert found["step"] == pytest.approx(found["rollout"] + found["teacher"] + found["update"])
    assert found["rss_bytes"] > 20e6 and found["mlx_bytes"] > 4 * TINY.vocabulary * 128


def test_exponents_are_slopes_between_logarithms() -> None:
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)
    assert exponent([1, 2, 4], [5, 5, 5]) == pytest.approx(0.0)


@pytest.mark.parametrize(("per_id", "growth"), [(0.0, 1.0), (100.0, (1e6 + 1638400) / (1e6 + 819200))])
def test_growth_is_measured_with_the_embedding_aside(tmp_path: Path, per_id: float, growth: float) -> None:
    bench = Growing(tmp_path, per_id)
    assert flatness(bench, TINY, 2 * TINY.vocabulary)["growth"] == pytest.approx(growth)


@pytest.mark.slow
def test_the_script_runs_in_small(tmp_path: Path) -> None:
    result = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--steps", "1", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(result.read_text(encoding="utf-8"))
    assert figures["axes"]["new_tokens"]["exponents"] and figures["flat"]["growth"] > 0
