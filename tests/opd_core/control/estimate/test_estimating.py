"""What a run would take, computed before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opd_core.control.estimate import speed
from opd_core.control.estimate.estimating import Estimate, estimate
from opd_core.errors import OPDError
from opd_core.settings import Settings
from opd_core.state.store import RunStore
from tests.model_folders import World, make_model, write_prompts


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return World(tmp_path)


def of(world: World, store: RunStore | None = None, **changes: Any) -> Estimate:
    return estimate(world.config(**changes), store, roots=world.roots, settings=Settings(world.home))


def past_run(world: World, run_id: str, tokens_per_second: float, model: str = "base") -> RunStore:
    """A store with a run of `model` that measured its speed."""
    store = RunStore(world.home.database)
    store.create(run_id, "distillation", {"base_model_path": str(world.home.models / model)}, total_steps=3)
    epoch = store.claim(run_id)
    store.transition(run_id, "running", epoch=epoch)
    for step in range(1, 4):
        line = {"step": step, "tokens_per_second": tokens_per_second}
        store.append_metrics(run_id, epoch, "train", line, latest_metrics='{"step": 3}')
    return store


def test_work_is_counted_from_the_configuration(world: World) -> None:
    found = of(world, num_training_steps=30, batch_size=8, num_rollouts_per_prompt=2, rollout_max_tokens=20)
    assert (found.steps, found.rollouts, found.completion_tokens_max) == (30, 480, 9600)
    assert found.completion_tokens == 4800 and found.evaluations == 2
    assert found.teacher_calls == 0 and found.cost_usd == 0.0
    assert found.train_prompts + found.held_out_prompts == 60


def test_evaluations_are_the_baseline_each_interval_and_the_end(world: World) -> None:
    assert of(world, num_training_steps=100, eval_every_steps=40).evaluations == 4


def test_length_of_completions_comes_from_examples_then_the_file_then_an_assumption(world: World) -> None:
    examples = [{"prompt": "a", "completion": "x" * 40}]
    by_example = of(world, teacher_examples=examples, num_training_steps=1, batch_size=1, num_rollouts_per_prompt=1)
    assert by_example.completion_tokens == 14 and any("teacher's examples" in note for note in by_example.notes)
    assert any("not known" in note for note in of(world).notes)
    write_prompts(world.prompts, completion="x" * 400)
    assert any("in the prompt file: about 131 tokens" in note for note in of(world).notes)


def test_first_run_is_a_guess_that_says_so(world: World) -> None:
    found = of(world)
    assert found.basis == "guess" and "guess" in found.basis_sentence
    assert 0 < found.minutes_low < found.minutes_expected < found.minutes_high


def test_guess_uses_the_measured_blas_speed(world: World) -> None:
    store = RunStore(world.home.database)
    store.set_fact("blas", {"gflops": 10.0})
    slow = of(world, store)
    store.set_fact("blas", {"gflops": 1000.0})
    assert slow.minutes_expected == pytest.approx(100 * of(world, store).minutes_expected)


def test_reference_blas_makes_the_guess_slow(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "guess_device", lambda: "cpu")
    monkeypatch.setattr(speed, "find_fast_blas", lambda: type("Found", (), {"source": "reference"})())
    assert "reference BLAS" in of(world).basis_sentence


def test_past_run_of_the_same_model_makes_the_minutes_measured(world: World) -> None:
    store = past_run(world, "opd_past", tokens_per_second=100.0)
    found = of(world, store, num_training_steps=10, batch_size=1, num_rollouts_per_prompt=1, rollout_max_tokens=200)
    training, evaluation = 10 * 100, 0.6 * found.evaluations * found.held_out_prompts * 100
    assert found.basis == "measured" and "opd_past" in found.basis_sentence
    assert found.minutes_expected == pytest.approx((training + evaluation) / 100 / 60)
    assert found.minutes_high == pytest.approx(2 * found.minutes_expected), "every completion may run to its limit"


def test_measured_speed_is_scaled_to_the_models_size_and_not_used_for_very_different_ones(world: World) -> None:
    make_model(world.home.models / "wide", hidden=64)
    make_model(world.home.models / "huge", hidden=256)
    store = past_run(world, "opd_past", tokens_per_second=100.0)
    ratio = of(world, store, base_model_path="wide").minutes_expected / of(world, store).minutes_expected
    assert 3.5 < ratio < 4.0
    assert of(world, store, base_model_path="huge").basis == "guess"


def test_nearest_size_wins_over_the_newest_run(world: World) -> None:
    make_model(world.home.models / "wide", hidden=64)
    past_run(world, "opd_near", tokens_per_second=100.0)
    store = past_run(world, "opd_far", tokens_per_second=7.0, model="wide")
    assert "opd_near" in of(world, store).basis_sentence


def test_past_run_whose_model_is_gone_is_passed_over(world: World) -> None:
    store = past_run(world, "opd_past", tokens_per_second=100.0, model="removed")
    assert of(world, store).basis == "guess"


def test_memory_grows_with_a_second_model_and_with_the_batch(world: World) -> None:
    make_model(world.home.models / "big", hidden=64)
    plain = of(world, batch_size=1, num_rollouts_per_prompt=1, rollout_max_tokens=8)
    assert of(world, batch_size=8, rollout_max_tokens=8).peak_memory_gb > plain.peak_memory_gb
    both = of(world, batch_size=1, num_rollouts_per_prompt=1, rollout_max_tokens=8, teacher_model_id="big")
    assert both.peak_memory_gb > plain.peak_memory_gb


def test_disk_grows_with_the_checkpoints_that_are_kept(world: World) -> None:
    few = of(world, checkpoint_every_steps=500)
    many = of(world, checkpoint_every_steps=5)
    assert many.disk_gb > few.disk_gb
    assert of(world, checkpoint_every_steps=5, save_best_only=True).disk_gb == pytest.approx(few.disk_gb)


def test_warnings_of_the_preflight_are_carried_and_refusals_raised(world: World) -> None:
    assert any("never reaches" in warning for warning in of(world, num_training_steps=5).warnings)
    with pytest.raises(OPDError):
        of(world, method="pg")


def test_estimating_writes_nothing(world: World) -> None:
    before = sorted(world.home.home.rglob("*"))
    of(world, RunStore(world.home.database))
    assert sorted(world.home.home.rglob("*")) == before
