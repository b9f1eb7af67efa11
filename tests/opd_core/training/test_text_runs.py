"""Whole runs that learn from a text teacher: every method, `auto`, the end of the money, restarts, the best kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import pytest

from opd_core.config import RunConfig, parse_config
from opd_core.errors import (
    BudgetExceededError,
    ConfigError,
    OPDError,
    TeacherRefusedError,
    TeacherStoppedError,
    TeacherUnavailableError,
    TrainingError,
)
from opd_core.guidance import Guidance
from opd_core.state.metrics import METRICS
from opd_core.teachers import build_teacher
from opd_core.teachers.coach import build_coach
from opd_core.training import evaluator, trainer
from opd_core.training.checkpoint import list_checkpoints, load_checkpoint
from opd_core.training.probe import Probe, ProbeReport
from opd_core.training.trainer import MAX_EMPTY_IN_A_ROW, TrainingOutcome, train
from opd_core.types import Rollout
from tests.opd_core.training.conftest import example
from tests.opd_core.training.scripted_teacher import PRICE, ScriptedTeacher
from tests.tiny import write_tiny_model

TRAIN = [example(f"train {index}") for index in range(6)]
HELD_OUT = [example(f"held {index}") for index in range(3)]
TIMING = ("seconds", "per_second", "peak_memory", "latency")
CHECK = {"kind": "regex", "pattern": ".*", "must_match": "search"}


@dataclass
class Recorder:
    """An observer that remembers; `stop_after` asks for a stop once that many steps are recorded."""

    stop_after: int | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None:
        self.phases.append(name)

    def rollouts(self, split: Literal["train", "val"], step: int, rollouts: Sequence[Rollout]) -> None: ...

    def train_metrics(self, line: dict[str, object]) -> None:
        self.lines.append(line)

    def eval_metrics(self, line: dict[str, object]) -> None:
        self.evaluations.append(line)

    def checkpoint(self, step: int, path: Path, is_best: bool) -> None: ...

    def log(self, message: str) -> None:
        self.messages.append(message)

    def should_stop(self) -> bool:
        return self.stop_after is not None and len(self.lines) >= self.stop_after

    def positions(self) -> dict[str, int]:
        return {}

    def cut_back(self, positions: dict[str, int]) -> None: ...


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", gain=2.0)


def settings(model: Path, method: str, **more: object) -> RunConfig:
    values: dict[str, object] = {
        "base_model_path": str(model),
        "prompts_path": "train.jsonl",
        "method": method,
        "num_rollouts_per_prompt": 2,
        "batch_size": 3,
        "rollout_max_tokens": 10,
        "num_training_steps": 6,
        "learning_rate": 5e-3,
        "lr_warmup_steps": 0,
        "lora_rank": 4,
        "kl_schedule": "constant",
        "eval_every_steps": 3,
        "checkpoint_every_steps": 2,
        "num_guidance_examples": 2,
    }
    return parse_config({**values, **more})


def run(
    config: RunConfig, folder: Path, recorder: Recorder, teacher: ScriptedTeacher | None = None, resume: bool = False
) -> TrainingOutcome:
    text = teacher or ScriptedTeacher()
    return train(
        config, folder, TRAIN, HELD_OUT, build_teacher, recorder,
        resume=resume, text_teacher=text, build_coach=build_coach,
    )  # fmt: skip


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


def after(calls: int, error: OPDError) -> Callable[[int], None]:
    def before_call(made: int) -> None:
        if made >= calls:
            raise error

    return before_call


BUDGET = BudgetExceededError("The run's budget is used up.", scope="run", left_pico=0, needed_pico=1)


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


def test_a_method_of_text_without_a_text_teacher_is_refused(model: Path, tmp_path: Path) -> None:
    for method in ("coach", "contrast", "sft"):
        with pytest.raises(ConfigError, match="teacher that writes text"):
            train(
                settings(model, method), tmp_path, TRAIN, HELD_OUT, build_teacher, Recorder(), resume=False
            )  # fmt: skip


def test_a_held_out_set_without_references_or_check_cannot_pick_a_best(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no reference for any held-out prompt"):
        run(settings(model, "contrast"), tmp_path, Recorder(), ScriptedTeacher(lambda prompt: None))


def decide(
    monkeypatch: pytest.MonkeyPatch, method: str, level: str | None, *, is_complete: bool = True
) -> list[tuple[str, ...]]:
    """Let every probe find this; returns the levels that each probe was asked for."""
    asked: list[tuple[str, ...]] = []

    def probed(self: Probe, levels: Sequence[str]) -> ProbeReport:
        asked.append(tuple(levels))
        reason = "method so and so, since so."
        return ProbeReport("task_score", 3, method, level, reason, 0.0, (), is_complete)  # type: ignore[arg-type]

    monkeypatch.setattr(Probe, "run", probed)
    return asked


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


@pytest.mark.parametrize(
    ("method", "more", "held_out"),
    [
        ("contrast", {}, 3),
        ("contrast", {"check": CHECK}, 0),
        ("sft", {"guidance_level": "reference", "check": CHECK}, 0),
        ("sft", {"check": CHECK}, 0),
    ],
)
def test_references_for_batches_are_asked_for_all_at_once_before_the_first_step(
    model: Path, tmp_path: Path, method: str, more: dict[str, object], held_out: int
) -> None:
    teacher, recorder = ScriptedTeacher(), Recorder()
    run(settings(model, method, teacher_batch_api=True, **more), tmp_path / "run", recorder, teacher)
    assert teacher.patient == [True] * (len(TRAIN) + held_out)
    assert {kind for kind, _ in teacher.calls[: len(teacher.patient)]} == {"reference"}


def test_only_the_references_that_the_steps_to_come_need_are_asked_for(model: Path, tmp_path: Path) -> None:
    teacher, config = ScriptedTeacher(), settings(model, "contrast", teacher_batch_api=True, check=CHECK)
    run(config.model_copy(update={"num_training_steps": 1}), tmp_path / "run", Recorder(), teacher)
    assert teacher.patient == [True] * 3
    first = {prompt for _, prompt in teacher.calls}
    again = ScriptedTeacher()
    run(config.model_copy(update={"num_training_steps": 2}), tmp_path / "run", Recorder(), again, resume=True)
    assert again.patient == [True] * 3
    assert first.isdisjoint(prompt for _, prompt in again.calls)


@pytest.mark.parametrize("level", ["examples", "reference"])
def test_a_coach_waits_for_no_batch(model: Path, tmp_path: Path, level: str) -> None:
    teacher = ScriptedTeacher()
    config = settings(model, "coach", teacher_batch_api=True, guidance_level=level, num_training_steps=1)
    run(config, tmp_path / "run", Recorder(), teacher)
    assert teacher.patient and not any(teacher.patient)


def test_a_budget_too_small_for_all_references_trains_on_those_that_were_got(model: Path, tmp_path: Path) -> None:
    class Poor(ScriptedTeacher):
        def references(self, conversations: Any, *, sample_index: int = 0, may_wait: bool = False) -> Any:
            if may_wait:
                raise BudgetExceededError("used up", scope="run", left_pico=0, needed_pico=1)
            return super().references(conversations, sample_index=sample_index)

    recorder = Recorder()
    outcome = run(settings(model, "contrast", teacher_batch_api=True, check=CHECK), tmp_path / "run", recorder, Poor())
    assert outcome.end_reason == "finished"
    assert any("not all references are within the budget" in message for message in recorder.messages)


def test_a_batch_that_takes_long_keeps_what_the_probe_found(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = decide(monkeypatch, "contrast", None)

    def wait(calls: int) -> None:
        raise TeacherUnavailableError("a batch", wake_in_seconds=600.0)

    config = settings(model, "auto", teacher_batch_api=True, check=CHECK)
    with pytest.raises(TeacherUnavailableError):
        run(config, tmp_path / "run", Recorder(), ScriptedTeacher(before_call=wait))
    teacher = ScriptedTeacher()
    run(config, tmp_path / "run", Recorder(), teacher, resume=True)
    assert len(asked) == 1
    assert teacher.patient == [True] * len(TRAIN)
