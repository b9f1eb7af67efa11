"""Whole runs that learn from a text teacher: every method, restarts, overlap, the best kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from opd_core.checkpoint_files import list_checkpoints
from opd_core.errors import ConfigError, TrainingError
from opd_core.state.metrics import METRICS
from opd_core.teachers import build_teacher
from opd_core.training.checkpoint import load_checkpoint
from opd_core.training.trainer import train
from tests.opd_core.training.scripted_teacher import PRICE, ScriptedTeacher
from tests.opd_core.training.text_run_kit import CHECK, HELD_OUT, TRAIN, Recorder, run, settings
from tests.tiny import write_tiny_model

TIMING = ("seconds", "per_second", "peak_memory", "latency")
METHODS: list[tuple[str, dict[str, object]]] = [
    ("coach", {"guidance_level": "examples"}),
    ("coach", {"guidance_level": "lesson", "check": CHECK, "teacher_refresh_steps": 2}),
    ("coach", {"guidance_level": "critique", "check": CHECK, "teacher_ema": 0.1, "anchor_weight": 0.1}),
    ("coach", {"guidance_level": "reference", "use_sft_mixup": True}),
    ("contrast", {"sft_warmup_steps": 1, "dpo_round_steps": 3}),
    ("sft", {}),
    ("sft", {"guidance_level": "reference", "check": CHECK}),
]


@pytest.mark.parametrize(("method", "more"), METHODS)
def test_every_method_trains_and_leaves_lines_that_are_all_described(
    model: Path, tmp_path: Path, method: str, more: dict[str, object]
) -> None:
    recorder = Recorder()
    outcome = run(settings(model, method, **more), tmp_path / "run", recorder)
    assert (outcome.end_reason, outcome.final_step, outcome.method) == ("finished", 6, method)
    assert len(recorder.lines) == 6 and [line["step"] for line in recorder.evaluations] == [0, 3, 6]
    for line in [*recorder.lines, *recorder.evaluations]:
        json.dumps(line, allow_nan=False)
        unknown = set(line) - set(METRICS) - {"completion_tokens_mean"}
        assert not unknown
    has_teacher = method == "coach"
    for line in recorder.lines:
        for name in ("kl_loss", "kl_divergence_mean", "teacher_alignment_pct", "student_entropy"):
            assert (line[name] is not None) == has_teacher, name
        assert line["update_skipped"] is False
    assert (tmp_path / "run" / "adapters.safetensors").is_file()


@pytest.mark.parametrize(("method", "more"), METHODS)
def test_stopped_and_resumed_equals_never_stopped(
    model: Path, tmp_path: Path, method: str, more: dict[str, object]
) -> None:
    config, whole, first, second = settings(model, method, **more), Recorder(), Recorder(stop_after=4), Recorder()
    run(config, tmp_path / "whole", whole)
    assert run(config, tmp_path / "parts", first).end_reason == "by_user"
    run(config, tmp_path / "parts", second, resume=True)
    money = ("checkpoint_path", "teacher_api_calls", "cumulative_cost_usd")

    def bare(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        skipped = (*TIMING, *money)
        return [{key: value for key, value in line.items() if not any(w in key for w in skipped)} for line in lines]

    assert bare(first.lines + second.lines) == bare(whole.lines)
    ends = [load_checkpoint(list_checkpoints(tmp_path / name)[-1]) for name in ("whole", "parts")]
    for name, value in ends[0].adapter.items():
        assert bool(mx.array_equal(value, ends[1].adapter[name]))
    assert ends[0].optimizer.keys() == ends[1].optimizer.keys()


@pytest.mark.parametrize(
    ("method", "more"),
    [("coach", {"guidance_level": "critique"}), ("contrast", {"sft_warmup_steps": 2}), ("sft", {})],
)
def test_with_overlap_the_same_is_asked_and_a_restart_changes_nothing(
    model: Path, tmp_path: Path, method: str, more: dict[str, object]
) -> None:
    config = settings(model, method, overlap_teacher=True, check=CHECK, **more)
    plain, ahead, recorder = ScriptedTeacher(), ScriptedTeacher(), Recorder()
    run(config.model_copy(update={"overlap_teacher": False}), tmp_path / "plain", Recorder(), plain)
    run(config, tmp_path / "whole", recorder, ahead)
    assert sorted(set(ahead.calls)) == sorted(set(plain.calls)) and len(ahead.calls) == len(plain.calls)
    first, second = Recorder(stop_after=3), Recorder()
    run(config, tmp_path / "parts", first)
    run(config, tmp_path / "parts", second, resume=True)
    losses = [[line["total_loss"] for line in lines] for lines in (recorder.lines, first.lines + second.lines)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_without_a_check_the_held_out_references_pick_the_best(model: Path, tmp_path: Path) -> None:
    teacher, recorder = ScriptedTeacher(lambda prompt: "yes"), Recorder()
    outcome = run(settings(model, "contrast", sft_warmup_steps=6), tmp_path / "run", recorder, teacher)
    values = [line["reference_nll"] for line in recorder.evaluations]
    assert outcome.primary_metric == "reference_nll" and outcome.best_value == min(values) == values[-1] < values[0]
    assert all(line["reverse_kl"] is None and line["task_score"] is None for line in recorder.evaluations)
    assert teacher.count("reference") == len(TRAIN) + len(HELD_OUT)  # each paid for once
    assert recorder.lines[-1]["cumulative_cost_usd"] == pytest.approx(9 * PRICE)


def test_with_a_check_the_task_score_picks_the_best_and_no_held_out_reference_is_bought(
    model: Path, tmp_path: Path
) -> None:
    teacher = ScriptedTeacher()
    outcome = run(settings(model, "contrast", check=CHECK), tmp_path / "run", Recorder(), teacher)
    assert outcome.primary_metric == "task_score" and teacher.count("reference") == len(TRAIN)


def test_coach_by_examples_has_a_held_out_divergence_and_it_falls(model: Path, tmp_path: Path) -> None:
    teacher, recorder = ScriptedTeacher(), Recorder()
    config = settings(model, "coach", guidance_level="examples", num_training_steps=18, eval_every_steps=6)
    outcome = run(config, tmp_path / "run", recorder, teacher)
    values = [line["reverse_kl"] for line in recorder.evaluations]
    assert outcome.primary_metric == "reverse_kl" and min(values) < 0.8 * values[0]
    assert len(teacher.calls) == 2  # the two examples, whatever the steps


def test_coach_by_examples_mixes_in_its_own_answers_which_cost_nothing(model: Path, tmp_path: Path) -> None:
    teacher, recorder = ScriptedTeacher(lambda prompt: "yes"), Recorder()
    config = settings(model, "coach", use_sft_mixup=True, rollout_max_tokens=30, num_training_steps=2, check=CHECK)
    run(config, tmp_path / "run", recorder, teacher)
    assert len(teacher.calls) == 2 and any(line["sft_loss"] > 0 for line in recorder.lines)


def test_a_method_of_text_without_a_text_teacher_is_refused(model: Path, tmp_path: Path) -> None:
    for method in ("coach", "contrast", "sft"):
        with pytest.raises(ConfigError, match="teacher that writes text"):
            train(
                settings(model, method), tmp_path, TRAIN, HELD_OUT, build_teacher, Recorder(), resume=False
            )  # fmt: skip


def test_a_held_out_set_without_references_or_check_cannot_pick_a_best(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no reference for any held-out prompt"):
        run(settings(model, "contrast"), tmp_path, Recorder(), ScriptedTeacher(lambda prompt: None))


def test_a_student_with_a_thinking_mode_is_warned_about(model: Path, tmp_path: Path) -> None:
    thinking = write_tiny_model(tmp_path / "thinking", gain=2.0)
    settings_file = thinking / "tokenizer_config.json"
    changed = json.loads(settings_file.read_text())
    changed["chat_template"] += "{% if enable_thinking %}<think>{% endif %}"
    settings_file.write_text(json.dumps(changed))
    for folder, warned in ((thinking, True), (model, False)):
        recorder = Recorder()
        run(settings(folder, "coach", num_training_steps=1), tmp_path / f"run {warned}", recorder)
        assert any("thinking mode" in message for message in recorder.messages) == warned
