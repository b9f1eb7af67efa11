"""Train 2k steps = train k, be killed, train k: weights, rollouts and metrics to the last bit, wherever it falls."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opd_core.config import RunConfig
from tests.opd_core.training.killable import METHODS, config_of, go, remains
from tests.tiny import write_tiny_model


@functools.lru_cache(maxsize=1)
def model() -> Path:
    """Kept for the whole module: twins are compared over many examples."""
    return write_tiny_model(Path(tempfile.mkdtemp(prefix="opd_exact_")) / "tiny", gain=2.0)


@functools.lru_cache(maxsize=256)
def twin(method: str, more: tuple[tuple[str, Any], ...] = ()) -> tuple[dict[str, Any], int]:
    """What the run leaves behind that nobody kills, and how often it speaks to its observer."""
    with tempfile.TemporaryDirectory() as folder:
        outcome, observer = go(config(method, more), Path(folder))
        assert outcome is not None and outcome.final_step > 0
        return remains(Path(folder)), observer.calls


def config(method: str, more: tuple[tuple[str, Any], ...]) -> RunConfig:
    return config_of(model(), method, **dict(more))


def killed_and_resumed(method: str, more: tuple[tuple[str, Any], ...], kills: list[float]) -> dict[str, Any]:
    """The same run, killed at these parts of its life one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        calls = twin(method, more)[1]
        for kill in kills:
            go(config(method, more), Path(folder), lives=int(kill * calls))
        outcome, _ = go(config(method, more), Path(folder))
        assert outcome is not None
        return remains(Path(folder))


SLOW = pytest.mark.slow
FEW = ("kl mixup", "coach critique overlap", "coach lesson refresh", "contrast", "sft", "auto")


@pytest.mark.parametrize("method", [name if name in FEW else pytest.param(name, marks=SLOW) for name in METHODS])
def test_a_run_that_was_killed_half_way_ends_as_its_twin(method: str) -> None:
    """Once right after a step that no checkpoint holds yet."""
    assert killed_and_resumed(method, (), [0.5, 0.7]) == twin(method)[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_evaluation_checkpoint_and_kill_may_fall_anywhere(method: str, data: st.DataObject) -> None:
    more = (
        ("eval_every_steps", data.draw(st.sampled_from([1, 2, 3, 4, 7]))),
        ("checkpoint_every_steps", data.draw(st.sampled_from([1, 2, 3, 5]))),
        ("save_best_only", data.draw(st.booleans())),
    )
    kills = data.draw(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3))
    assert killed_and_resumed(method, more, kills) == twin(method, more)[0]
