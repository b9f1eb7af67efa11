"""When a run has passed its best, and what it remembers of its evaluations."""

from __future__ import annotations

import json
import math

import pytest

from opd_core.errors import CheckpointError, TrainingError
from opd_core.training.evaluator import Evaluation, SampleScore
from opd_core.training.run_memory import MAX_EMPTY_IN_A_ROW, RunMemory
from opd_core.training.stop_rules import PrimaryMetric, Standing, falls_off, standing


def scores(right: int, of: int = 24) -> dict[str, float]:
    return {f"id_{index:02d}": float(index < right) for index in range(of)}


def stand(right: int, tokens: float = 20.0, repetition: float = 0.0, of: int = 24) -> Standing:
    return Standing(scores(right, of), tokens, repetition)


BASELINE, BEST = stand(0), stand(16)


def fall(now: Standing, best: Standing = BEST, primary: PrimaryMetric = "task_score") -> str | None:
    return falls_off(now, best, BASELINE, primary, seed=1)


def test_the_measured_fall_from_16_to_9_of_24_ends_a_run() -> None:
    assert fall(stand(9)) == "The held-out task_score fell off from 0.667 to 0.375."


def test_a_dip_that_may_be_chance_does_not_end_a_run() -> None:
    assert fall(stand(15)) is None
    mixed = Standing({**scores(13), "id_20": 1.0, "id_21": 1.0}, 20.0, 0.0)  # some lost, some gained
    assert fall(mixed) is None


def test_a_sure_but_small_fall_does_not_end_a_run() -> None:
    assert fall(stand(920, of=1000), stand(1000, of=1000)) is None
    assert fall(stand(880, of=1000), stand(1000, of=1000)) is not None


def test_too_few_prompts_show_no_fall() -> None:
    assert fall(stand(0, of=5), stand(5, of=5)) is None
    assert fall(stand(0, of=6), stand(6, of=6)) is not None


@pytest.mark.parametrize("primary", ["reverse_kl", "reference_nll"])
def test_nats_fall_off_upwards(primary: PrimaryMetric) -> None:
    def nats(level: float) -> Standing:
        return Standing({f"id_{index}": level + 0.01 * index for index in range(10)}, 20.0, 0.0)

    assert fall(nats(1.5), nats(1.0), primary) is not None
    assert fall(nats(1.1), nats(1.0), primary) is None
    assert fall(nats(0.5), nats(1.0), primary) is None


def test_answers_that_run_away_in_repetition_end_a_run() -> None:
    message = fall(stand(16, tokens=60.0, repetition=0.5))
    assert message is not None and "ran away" in message and "60 tokens instead of 20" in message
    assert fall(stand(16, tokens=60.0, repetition=0.1)) is None  # longer, but not a loop
    assert fall(stand(16, tokens=25.0, repetition=0.5)) is None
    assert fall(stand(16, tokens=60.0, repetition=0.5), stand(16, tokens=50.0)) is None


def test_answers_that_become_empty_end_a_run() -> None:
    assert "empty" in (fall(stand(16, tokens=1.0)) or "")
    assert fall(stand(16, tokens=4.0)) is None  # short is what may have been asked for
    assert fall(stand(16, tokens=1.0), stand(16, tokens=2.0)) is None


def evaluation(right: int, reverse_kl: float | None = None, nll: float | None = None) -> Evaluation:
    return Evaluation(
        tuple(
            SampleScore(name, name, "text", 10, "stop", 0.0, reverse_kl, None, score, nll)
            for name, score in scores(right).items()
        ),
        (),
    )


def take(memory: RunMemory, step: int, found: Evaluation, primary: PrimaryMetric = "task_score") -> bool:
    memory.step = step
    return memory.take(found, primary, seed=1)


def test_a_standing_holds_the_primary_metric_by_prompt() -> None:
    assert standing(evaluation(3), "task_score").values == scores(3)
    assert set(standing(evaluation(3, nll=0.5), "reference_nll").values.values()) == {0.5}
    assert standing(evaluation(3), "reverse_kl").values == {}


def test_the_best_is_kept_and_a_fall_from_it_is_noted() -> None:
    memory = RunMemory()
    assert take(memory, 0, evaluation(0)) and take(memory, 30, evaluation(16))
    assert not take(memory, 60, evaluation(9))
    assert (memory.best_step, memory.best_value, memory.baseline_value) == (30, 16 / 24, 0.0)
    assert memory.fell_off is not None and memory.evaluations_without_better == 1


def test_equal_scores_are_told_apart_by_the_divergence_when_there_is_one() -> None:
    memory = RunMemory()
    assert take(memory, 0, evaluation(8, reverse_kl=2.0)) and take(memory, 1, evaluation(8, reverse_kl=1.0))
    memory = RunMemory()
    assert take(memory, 0, evaluation(8)) and not take(memory, 1, evaluation(8))


def test_a_lower_nll_is_better() -> None:
    memory = RunMemory()
    assert take(memory, 0, evaluation(0, nll=2.0), "reference_nll")
    assert take(memory, 1, evaluation(0, nll=1.0), "reference_nll")
    assert not take(memory, 2, evaluation(0, nll=1.5), "reference_nll")
    assert memory.best_value == 1.0 and memory.fell_off is not None


@pytest.mark.parametrize("found", [evaluation(1, reverse_kl=math.nan), evaluation(1, nll=math.inf)])
def test_a_figure_that_is_not_finite_is_an_error(found: Evaluation) -> None:
    with pytest.raises(TrainingError, match=r"held-out re.* is not a finite number"):
        take(RunMemory(), 0, found)


def test_the_memory_survives_a_restart_and_forgets_why_it_ended() -> None:
    memory = RunMemory(method="coach", guidance_level="examples", probe={"reason": "r"}, teacher={"calls": 3})
    take(memory, 0, evaluation(16))
    take(memory, 5, evaluation(0))
    memory.empty_steps = 4
    again = RunMemory.from_record(json.loads(json.dumps(memory.as_record())))
    assert again.fell_off is None and again.empty_steps == 4
    again.fell_off = memory.fell_off
    assert again == memory
    memory.empty_steps = MAX_EMPTY_IN_A_ROW
    assert RunMemory.from_record(json.loads(json.dumps(memory.as_record()))).empty_steps == 0


def test_a_record_of_another_version_is_refused() -> None:
    with pytest.raises(CheckpointError, match="another version"):
        RunMemory.from_record({"no_such_field": 1})
