"""`auto` trains with what its probe recommends, and probes again only when the probe was cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.teachers import build_teacher
from opd_core.training.trainer import train
from tests.opd_core.training.scripted_teacher import ScriptedTeacher
from tests.opd_core.training.text_run_kit import BUDGET, CHECK, HELD_OUT, TRAIN, Recorder, after, decide, run, settings


@pytest.mark.parametrize(("method", "level"), [("coach", "critique"), ("contrast", None)])
def test_auto_trains_with_what_the_probe_recommends_and_says_why(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, level: str | None
) -> None:
    asked, recorder = decide(monkeypatch, method, level), Recorder()
    outcome = run(settings(model, "auto", check=CHECK), tmp_path / "run", recorder)
    assert (outcome.method, outcome.guidance_level, outcome.end_reason) == (method, level, "finished")
    assert outcome.probe is not None and outcome.probe["reason"] == "method so and so, since so."
    assert "auto chose method so and so, since so." in recorder.messages
    assert all((line["method"], line["guidance_level"]) == (method, level) for line in recorder.evaluations)
    assert ("dpo_loss" in recorder.lines[-1]) == (method == "contrast")
    assert asked == [("examples", "lesson", "critique", "reference")]


def test_a_resumed_run_does_not_probe_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, config = decide(monkeypatch, "coach", "lesson"), settings(model, "auto", check=CHECK)
    run(config, tmp_path / "run", Recorder(stop_after=2))
    outcome = run(config, tmp_path / "run", Recorder(), resume=True)
    assert (outcome.method, outcome.guidance_level, outcome.end_reason) == ("coach", "lesson", "finished")
    assert len(asked) == 1 and outcome.probe is not None


def test_a_probe_that_its_budget_cut_short_is_made_again_by_a_resume(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(model, "auto", check=CHECK)
    decide(monkeypatch, "contrast", None, is_complete=False)
    recorder = Recorder()
    monkeypatch.setattr(recorder, "positions", lambda: {"metrics/eval": 7})
    first = run(config, tmp_path / "run", recorder, ScriptedTeacher(before_call=after(0, BUDGET)))
    assert (first.method, first.final_step, first.end_reason) == ("contrast", 0, "budget")
    assert (tmp_path / "run" / "step_000000" / "MANIFEST.json").exists(), "the baseline of the wrong method"

    cuts: list[dict[str, int]] = []
    asked, again = decide(monkeypatch, "coach", "examples"), Recorder()
    monkeypatch.setattr(again, "cut_back", cuts.append)
    outcome = run(config, tmp_path / "run", again, resume=True)
    assert cuts[-1] == {}, "the files begin again as well"
    assert len(asked) == 1 and (outcome.method, outcome.guidance_level) == ("coach", "examples")
    assert outcome.end_reason == "finished" and again.evaluations[0]["step"] == 0
    never_cut = Recorder()
    run(config, tmp_path / "straight", never_cut)
    losses = [[(line["step"], line["total_loss"]) for line in seen.lines] for seen in (again, never_cut)]
    assert losses[0] == losses[1], "as if the short probe had never been"


def test_what_was_trained_with_a_short_probe_s_choice_goes_on_with_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(model, "auto", check=CHECK)
    decide(monkeypatch, "contrast", None, is_complete=False)
    run(config, tmp_path / "run", Recorder(stop_after=2))
    asked = decide(monkeypatch, "coach", "examples")
    assert run(config, tmp_path / "run", Recorder(), resume=True).method == "contrast" and not asked


def test_a_probe_that_was_stopped_trains_nothing_and_is_made_again(model: Path, tmp_path: Path) -> None:
    recorder = Recorder(stop_after=0)
    outcome = run(settings(model, "auto", check=CHECK), tmp_path / "run", recorder)
    assert (outcome.end_reason, outcome.final_step) == ("by_user", 0) and not recorder.evaluations
    again = Recorder()
    outcome = run(settings(model, "auto", check=CHECK), tmp_path / "run", again, resume=True)
    assert "probe" in again.phases and outcome.method == "contrast" and outcome.end_reason == "finished"


def test_auto_with_a_level_given_probes_that_level_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = decide(monkeypatch, "contrast", None)
    run(settings(model, "auto", check=CHECK, guidance_level="lesson"), tmp_path / "run", Recorder())
    assert asked == [("lesson",)]


def test_auto_without_a_text_teacher_means_kl(model: Path, tmp_path: Path) -> None:
    recorder, config = Recorder(), settings(model, "auto", teacher_system_prompt="Shout.")
    outcome = train(config, tmp_path / "run", TRAIN, HELD_OUT, build_teacher, recorder, resume=False)
    assert outcome.method == "kl" and outcome.primary_metric == "reverse_kl" and outcome.probe is None
    assert recorder.lines[0]["teacher_api_calls"] == 0
