"""Runs that end before their last step: money, refusals, stops, outages, a lost score, nothing to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from opd_core.checkpoint_files import list_checkpoints
from opd_core.errors import TeacherRefusedError, TeacherStoppedError, TeacherUnavailableError
from opd_core.guidance import Guidance
from opd_core.training import evaluator, trainer
from opd_core.training.checkpoint import load_checkpoint
from opd_core.training.run_memory import MAX_EMPTY_IN_A_ROW
from tests.opd_core.training.scripted_teacher import ScriptedTeacher
from tests.opd_core.training.text_run_kit import BUDGET, CHECK, Recorder, after, run, settings


def test_a_run_that_loses_its_best_score_keeps_it_and_stops(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.0, 1.0, 0.0, 1.0])
    real = evaluator.evaluate

    def evaluate(*args: Any, **more: Any) -> Any:
        found, score = real(*args, **more), next(values)
        assert found is not None
        samples = [{**vars(sample), "task_score": score} for sample in found.samples for _ in range(3)]
        for index, sample in enumerate(samples):
            sample["prompt_id"] = str(index)
        return type(found)(tuple(type(found.samples[0])(**sample) for sample in samples), found.rollouts)

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    recorder = Recorder()
    config = settings(model, "contrast", check=CHECK, eval_every_steps=2, num_training_steps=40)
    outcome = run(config, tmp_path / "run", recorder)
    assert (outcome.end_reason, outcome.final_step, outcome.best_step, outcome.best_value) == ("early_stop", 4, 2, 1.0)
    assert outcome.message.startswith("The held-out task_score fell off from 1 to 0. The adapter of step 2 is kept")
    kept, best = mx.load(str(tmp_path / "run" / "adapters.safetensors")), load_checkpoint(tmp_path / "run/step_000002")
    assert isinstance(kept, dict) and all(bool(mx.array_equal(kept[n], v)) for n, v in best.adapter.items())


def test_when_the_money_ends_the_run_ends_cleanly_with_what_it_has_learnt(model: Path, tmp_path: Path) -> None:
    recorder, teacher = Recorder(), ScriptedTeacher(before_call=after(13, BUDGET))
    config = settings(model, "sft", check=CHECK, num_training_steps=20, eval_every_steps=20)
    outcome = run(config, tmp_path / "run", recorder, teacher)  # six calls a step, and the third does not finish
    assert (outcome.end_reason, outcome.final_step) == ("budget", 2)
    assert outcome.message.startswith("The run's budget is used up. Stopped after step 2")
    assert [line["step"] for line in recorder.evaluations] == [0, 2]  # what was trained last is still judged
    assert list_checkpoints(tmp_path / "run")[-1].name == "step_000002"
    more = Recorder()
    assert run(config, tmp_path / "run", more, ScriptedTeacher(), resume=True).end_reason == "finished"
    assert more.lines[0]["step"] == 3
    assert more.lines[0]["teacher_api_calls"] > recorder.lines[-1]["teacher_api_calls"]


def test_money_that_ends_before_the_first_evaluation_trains_nothing_and_says_so(model: Path, tmp_path: Path) -> None:
    for name, config in (
        ("no examples", settings(model, "coach")),
        ("no held-out references", settings(model, "contrast")),
        ("no probe", settings(model, "auto", check=CHECK)),
    ):
        outcome = run(config, tmp_path / name, Recorder(), ScriptedTeacher(before_call=after(0, BUDGET)))
        assert (outcome.end_reason, outcome.final_step) == ("budget", 0), name
        assert outcome.message == "The run's budget is used up. Nothing was trained."


def test_a_refusal_of_the_training_itself_ends_the_run(model: Path, tmp_path: Path) -> None:
    teacher = ScriptedTeacher(before_call=after(7, TeacherRefusedError("The provider refuses.")))
    outcome = run(settings(model, "sft", check=CHECK), tmp_path / "run", Recorder(), teacher)
    assert (outcome.end_reason, outcome.final_step) == ("teacher_refused", 1)
    assert "The provider refuses." in outcome.message


def test_a_stop_while_the_teacher_is_waited_for_is_a_stop_by_the_user(model: Path, tmp_path: Path) -> None:
    teacher = ScriptedTeacher(before_call=after(7, TeacherStoppedError("stopped")))
    outcome = run(settings(model, "sft", check=CHECK), tmp_path / "run", Recorder(), teacher)
    assert (outcome.end_reason, outcome.final_step) == ("by_user", 1)
    assert list_checkpoints(tmp_path / "run")[-1].name == "step_000001"


def test_an_outage_leaves_a_checkpoint_of_the_last_step(model: Path, tmp_path: Path) -> None:
    teacher = ScriptedTeacher(before_call=after(7, TeacherUnavailableError("no network", wake_in_seconds=900.0)))
    with pytest.raises(TeacherUnavailableError):
        run(settings(model, "sft", check=CHECK), tmp_path / "run", Recorder(), teacher)
    assert list_checkpoints(tmp_path / "run")[-1].name == "step_000001"


def test_a_run_with_nothing_to_learn_from_ends_early_and_says_so(model: Path, tmp_path: Path) -> None:
    teacher = ScriptedTeacher(guide=lambda rollout: Guidance("correct", 1.0, "", None, ""))
    config = settings(model, "coach", guidance_level="critique", check=CHECK, num_training_steps=99)
    recorder = Recorder()
    outcome = run(config, tmp_path / "run", recorder, teacher)
    assert (outcome.end_reason, outcome.final_step) == ("early_stop", MAX_EMPTY_IN_A_ROW)
    assert "nothing to learn from" in outcome.message
    assert all(line["update_skipped"] and line["rollouts_without_guidance"] == 6 for line in recorder.lines)
