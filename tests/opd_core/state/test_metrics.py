from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.state import metrics
from opd_core.state.database import Database
from opd_core.state.metrics import METRICS, append_point, cut_points, read_points, thin
from opd_core.state.store import RunStore


@pytest.fixture
def database(tmp_path: Path) -> Database:
    RunStore(tmp_path / "opd.db").create("run", "distillation", {})
    return Database(tmp_path / "opd.db")


def add(database: Database, *lines: Mapping[str, Any]) -> None:
    with database.write() as connection:
        for line in lines:
            append_point(connection, "run", "train", line)


def steps(database: Database) -> list[int]:
    return [line["step"] for line in read_points(database, "run", "train")]


def test_a_series_stays_bounded_and_keeps_first_and_last_at_every_length(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_POINTS", 8)
    with database.write() as connection:
        for step in range(1, 300):
            append_point(connection, "run", "train", {"step": step})
            kept = [record["step"] for record in connection.execute("SELECT step FROM metric_points ORDER BY ordinal")]
            assert kept[0] == 1 and kept[-1] == step
            assert min(step, 4) <= len(kept) <= 8


def test_kept_points_are_evenly_spaced(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_POINTS", 8)
    add(database, *({"step": step} for step in range(50)))
    assert steps(database) == [0, 8, 16, 24, 32, 40, 48, 49]


def test_a_hundred_thousand_steps_are_kept_in_512_points(database: Database) -> None:
    add(database, *({"step": step} for step in range(1, 100_001)))
    stored = database.read("SELECT COUNT(*) AS points FROM metric_points")[0]["points"]
    assert 256 <= stored <= 512
    assert steps(database)[-1] == 100_000


def test_series_do_not_touch_each_other(database: Database) -> None:
    add(database, {"step": 1})
    with database.write() as connection:
        append_point(connection, "run", "eval", {"step": 0})
    assert steps(database) == [1]
    assert read_points(database, "run", "eval") == [{"step": 0}]


def test_reading_can_go_on_after_a_step(database: Database) -> None:
    add(database, *({"step": step} for step in range(1, 11)))
    assert [line["step"] for line in read_points(database, "run", "train", since_step=7)] == [8, 9, 10]
    assert [line["step"] for line in read_points(database, "run", "train", points=3)] == [1, 5, 10]


@pytest.mark.parametrize("cut_at", [0, 1, 5, 9, 30])
def test_a_cut_series_ends_at_the_last_line_and_goes_on_bounded(
    database: Database, monkeypatch: pytest.MonkeyPatch, cut_at: int
) -> None:
    monkeypatch.setattr(metrics, "MAX_POINTS", 8)
    add(database, *({"step": step, "try": 1} for step in range(1, 31)))
    with database.write() as connection:
        cut_points(connection, "run", "train", {"step": cut_at, "try": 1} if cut_at else None)
    assert steps(database)[-1:] == ([cut_at] if cut_at else [])
    add(database, *({"step": step, "try": 2} for step in range(cut_at + 1, 200)))
    lines = read_points(database, "run", "train")
    assert len(lines) <= 8
    assert lines[-1] == {"step": 199, "try": 2}
    assert all(line["try"] == (1 if line["step"] <= cut_at else 2) for line in lines)
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})


@given(st.lists(st.integers(), max_size=60, unique=True), st.integers(1, 70))
@settings(deadline=None)
def test_thinning_keeps_order_ends_and_bound(items: list[int], most: int) -> None:
    kept = thin(items, most)
    assert len(kept) == min(most, len(items))
    assert kept[-1:] == items[-1:]
    positions = [items.index(item) for item in kept]
    assert positions == sorted(set(positions))
    assert most == 1 or kept[:1] == items[:1]


def test_every_metric_of_the_design_is_described() -> None:
    design = """step kl_loss sft_loss total_loss kl_divergence_mean kl_divergence_max kl_divergence_min student_entropy
        teacher_alignment_pct tokens_per_second samples_processed kl_weight kl_divergence_std perplexity
        teacher_api_latency_ms teacher_api_calls cumulative_cost_usd checkpoint_path is_best gradient_norm
        completion_tokens_mean truncation_rate repetition_rate rollout_tokens_per_second teacher_tokens_per_second
        update_tokens_per_second held_out_prompts task_score reverse_kl teacher_agreement_pct"""
    assert set(design.split()) <= set(METRICS)


def test_every_description_is_complete() -> None:
    for name, metric in METRICS.items():
        assert metric.unit and metric.meaning, name
        assert metric.direction in ("up", "down", "neither"), name
