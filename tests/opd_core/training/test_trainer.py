"""A run from start to end on the tiny model: it learns, keeps the best, stops and goes on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import pytest
from mlx_lm.utils import load

from opd_core.checkpoint_files import fingerprint_file, list_checkpoints
from opd_core.config import RunConfig, parse_config
from opd_core.errors import CheckpointError, TrainingError
from opd_core.teachers import build_teacher
from opd_core.training.checkpoint import load_checkpoint
from opd_core.training.lora import LoadedBase
from opd_core.training.methods import BuildTeacher
from opd_core.training.step import batch_for_step
from opd_core.training.teaching import TokenTeacher
from opd_core.training.trainer import TrainingOutcome, train
from opd_core.types import Message, Rollout
from tests.opd_core.training.conftest import example
from tests.tiny import write_tiny_model

TRAIN = [example(f"train prompt {index}", completion="yes") for index in range(10)]
HELD_OUT = [example(f"held out {index}") for index in range(4)]
TIMING = ("seconds", "per_second", "peak_memory")


@dataclass
class Recorder:
    """An observer that remembers; `stop_after` asks for a stop once that many steps are recorded."""

    stop_after: int | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    written: list[tuple[str, int, list[Rollout]]] = field(default_factory=list)
    saved: list[tuple[int, bool]] = field(default_factory=list)
    cuts: list[dict[str, int]] = field(default_factory=list)

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None: ...

    def rollouts(self, split: Literal["train", "val"], step: int, rollouts: Sequence[Rollout]) -> None:
        self.written.append((split, step, list(rollouts)))

    def train_metrics(self, line: dict[str, object]) -> None:
        self.lines.append(line)

    def eval_metrics(self, line: dict[str, object]) -> None:
        self.evaluations.append(line)

    def checkpoint(self, step: int, path: Path, is_best: bool) -> None:
        self.saved.append((step, is_best))

    def log(self, message: str) -> None: ...

    def should_stop(self) -> bool:
        return self.stop_after is not None and len(self.lines) >= self.stop_after

    def positions(self) -> dict[str, int]:
        return {"train": len(self.lines)}

    def cut_back(self, positions: dict[str, int]) -> None:
        self.cuts.append(positions)


def settings(folder: Path, **more: object) -> RunConfig:
    values: dict[str, object] = {
        "base_model_path": str(folder),
        "prompts_path": "train.jsonl",
        "teacher_system_prompt": "Answer as a pirate would, loudly.",
        "method": "kl",
        "num_rollouts_per_prompt": 2,
        "batch_size": 3,
        "rollout_max_tokens": 6,
        "num_training_steps": 8,
        "learning_rate": 5e-3,
        "lr_warmup_steps": 0,
        "lora_rank": 4,
        "kl_schedule": "constant",
        "eval_every_steps": 4,
        "checkpoint_every_steps": 3,
        "primary_metric": "reverse_kl",
    }
    return parse_config({**values, **more})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # a flatter model than elsewhere: its rollouts differ, and the pirate's context moves it
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", gain=2.0)


def run(config: RunConfig, folder: Path, observer: Recorder, resume: bool = False) -> TrainingOutcome:
    return train(config, folder, TRAIN, HELD_OUT, build_teacher, observer, resume=resume)


def without_times(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if not any(word in key for word in TIMING)} for line in lines]


def test_a_run_lowers_the_held_out_divergence_and_keeps_the_best_adapter(model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = run(settings(model, num_training_steps=24, eval_every_steps=8), tmp_path / "run", recorder)
    values = [line["reverse_kl"] for line in recorder.evaluations]
    steps = [line["step"] for line in recorder.evaluations]
    assert steps == [0, 8, 16, 24]
    assert min(values) < 0.7 * values[0]
    assert outcome.end_reason == "finished" and outcome.final_step == 24
    assert (
        outcome.best_value == min(values)
        and outcome.best_step == recorder.evaluations[values.index(min(values))]["step"]
    )
    kept = mx.load(str(tmp_path / "run" / "adapters.safetensors"))
    best = load_checkpoint(tmp_path / "run" / f"step_{outcome.best_step:06d}").adapter
    assert isinstance(kept, dict) and all(bool(mx.array_equal(kept[name], best[name])) for name in best)


def test_mlx_lm_loads_the_runs_folder_and_every_checkpoint(model: Path, tmp_path: Path) -> None:
    run(settings(model, num_training_steps=3), tmp_path / "run", Recorder())
    for folder in (tmp_path / "run", *list_checkpoints(tmp_path / "run")):
        loaded = load(str(model), adapter_path=str(folder))[0]
        assert loaded(mx.array([[1, 2, 3]])).shape == (1, 3, 259)


def test_every_step_leaves_a_complete_line_and_its_rollouts(model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    run(settings(model, num_training_steps=2), tmp_path / "run", recorder)
    assert [line["step"] for line in recorder.lines] == [1, 2]
    names = (
        "kl_loss sft_loss total_loss kl_weight kl_divergence_mean kl_divergence_max kl_divergence_min "
        "kl_divergence_std "
        "student_entropy teacher_alignment_pct tokens_per_second samples_processed perplexity teacher_api_calls "
        "cumulative_cost_usd checkpoint_path is_best gradient_norm truncation_rate repetition_rate"
    )
    for line in recorder.lines:
        assert set(names.split()) <= set(line)
        assert line["kl_divergence_min"] <= line["kl_divergence_mean"] <= line["kl_divergence_max"]
        assert line["kl_loss"] == pytest.approx(line["kl_divergence_mean"], rel=1e-4)
    train_rollouts = [rollouts for split, _, rollouts in recorder.written if split == "train"]
    assert [len(rollouts) for rollouts in train_rollouts] == [6, 6]
    assert all(len(r.completion_ids) == len(r.sampling_logprobs) > 0 for r in train_rollouts[0])


@dataclass
class SlowRecorder(Recorder):
    """Its time passes in what it is told, and nowhere else."""

    now: float = 1000.0

    def clock(self) -> float:
        return self.now

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None:
        self.now += 10_000 if name in ("preparing", "baseline_eval", "evaluation", "final_eval", "checkpoint") else 0

    def rollouts(self, split: Literal["train", "val"], step: int, rollouts: Sequence[Rollout]) -> None:
        self.now += 2 if split == "train" else 10_000

    def train_metrics(self, line: dict[str, object]) -> None:
        super().train_metrics(line)
        self.now += 3

    def eval_metrics(self, line: dict[str, object]) -> None:
        self.now += 10_000

    def checkpoint(self, step: int, path: Path, is_best: bool) -> None:
        super().checkpoint(step, path, is_best)
        self.now += 10_000


def test_other_seconds_are_those_of_the_bookkeeping_and_not_of_evaluations_and_checkpoints(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = SlowRecorder()
    monkeypatch.setattr("time.perf_counter", recorder.clock)
    run(settings(model, num_training_steps=6, eval_every_steps=4, checkpoint_every_steps=2), tmp_path / "run", recorder)
    saved = {step for step, _ in recorder.saved}
    assert {2, 4} <= saved and saved.isdisjoint({1, 3, 5})
    # what follows an evaluation (0, 4) or a checkpoint (2) begins anew; else the line of the step before counts too
    assert [line["other_seconds"] for line in recorder.lines] == [2, 5, 2, 5, 2, 5]


def test_the_loss_does_not_depend_on_how_a_step_is_cut_into_micro_batches(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for tokens_per_batch in (100_000, 1):
        monkeypatch.setattr("opd_core.training.updates.CPU_TOKENS_PER_LANE", tokens_per_batch)
        recorder = Recorder()
        run(settings(model, num_training_steps=1), tmp_path / str(tokens_per_batch), recorder)
        lines.append(recorder.lines[0])
    assert lines[0]["kl_loss"] == pytest.approx(lines[1]["kl_loss"], rel=1e-4)
    assert lines[0]["gradient_norm"] == pytest.approx(lines[1]["gradient_norm"], rel=1e-3)


def test_stopped_and_resumed_equals_never_stopped(model: Path, tmp_path: Path) -> None:
    config = settings(model)
    whole, first, second = Recorder(), Recorder(stop_after=5), Recorder()
    run(config, tmp_path / "whole", whole)
    stopped = run(config, tmp_path / "parts", first)
    assert stopped.end_reason == "by_user" and stopped.final_step == 5
    finished = run(config, tmp_path / "parts", second, resume=True)
    assert finished.end_reason == "finished"
    assert second.cuts == [{"train": 5}]
    assert without_times(first.lines + second.lines) == [
        {**line, "checkpoint_path": line["checkpoint_path"].replace("whole", "parts")}
        for line in without_times(whole.lines)
    ]
    ends = [load_checkpoint(list_checkpoints(tmp_path / name)[-1]) for name in ("whole", "parts")]
    assert ends[0].path.name == ends[1].path.name == "step_000008"
    assert all(bool(mx.array_equal(ends[0].adapter[name], ends[1].adapter[name])) for name in ends[0].adapter)


def test_resuming_from_an_earlier_checkpoint_replays_the_lost_steps_exactly(model: Path, tmp_path: Path) -> None:
    config, recorder, again = settings(model, num_training_steps=5), Recorder(), Recorder()
    run(config, tmp_path / "run", recorder)
    for path in list_checkpoints(tmp_path / "run")[-1:]:  # as if the process had died before the last checkpoint
        shutil.rmtree(path)
    run(config, tmp_path / "run", again, resume=True)
    resumed_from = 4
    assert without_times(again.lines) == without_times(recorder.lines[resumed_from:])


def test_resuming_without_a_checkpoint_starts_over(model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = run(settings(model, num_training_steps=1), tmp_path / "run", recorder, resume=True)
    assert outcome.final_step == 1 and recorder.cuts == [{}]


def test_a_damaged_checkpoint_is_not_resumed_from_silently(model: Path, tmp_path: Path) -> None:
    config = settings(model, num_training_steps=1)
    run(config, tmp_path / "run", Recorder())
    file = list_checkpoints(tmp_path / "run")[-1] / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match="damaged"):
        run(config, tmp_path / "run", Recorder(), resume=True)


def test_a_run_without_progress_stops_early(model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    config = settings(model, learning_rate=1e-12, eval_every_steps=1, early_stopping_patience=2, num_training_steps=50)
    outcome = run(config, tmp_path / "run", recorder)
    assert outcome.end_reason == "early_stop"
    assert outcome.final_step < 50
    assert not any(line["is_best"] for line in recorder.evaluations[-2:])


def test_a_stop_before_the_first_step_still_leaves_a_true_outcome(model: Path, tmp_path: Path) -> None:
    outcome = run(settings(model), tmp_path / "run", Recorder(stop_after=0))
    assert (outcome.end_reason, outcome.final_step) == ("by_user", 0)


def test_a_loss_that_is_not_finite_skips_the_step_and_ends_the_run_after_three(model: Path, tmp_path: Path) -> None:
    def build_broken(config: RunConfig, base: LoadedBase) -> TokenTeacher:
        teacher = build_teacher(config, base)
        sound = teacher.states

        def broken(conversations: Sequence[Sequence[Message]], completions: Sequence[Sequence[int]]) -> mx.array:
            states = sound(conversations, completions)
            return states * float("nan") if "train" in conversations[0][0]["content"] else states

        teacher.states = broken  # type: ignore[method-assign]
        return teacher

    recorder = Recorder()
    with pytest.raises(TrainingError, match=r"3 steps in a row.*step 0 is kept.*learning_rate"):
        train(settings(model), tmp_path / "run", TRAIN, HELD_OUT, build_broken, recorder, resume=False)
    assert [line["update_skipped"] for line in recorder.lines] == [True, True, True]
    json.dumps(recorder.lines, allow_nan=False)  # what is not finite is written as null
    weights = load_checkpoint(tmp_path / "run" / "step_000000").adapter
    assert all(bool(mx.all(mx.isfinite(value))) for value in weights.values())


def test_sft_mixup_adds_its_share_of_nll_to_the_loss(model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    run(settings(model, use_sft_mixup=True, sft_weight=0.5, num_training_steps=6), tmp_path / "run", recorder)
    losses = [line["sft_loss"] for line in recorder.lines]
    assert losses[-1] < losses[0]
    line = recorder.lines[0]
    assert line["total_loss"] == pytest.approx(line["kl_weight"] * line["kl_loss"] + 0.5 * line["sft_loss"])


def test_every_pass_over_the_prompts_uses_each_once_in_another_order() -> None:
    passes = [
        [e.prompt for step in range(start, start + 5) for e in batch_for_step(TRAIN, step, 2, 42)] for start in (1, 6)
    ]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(e.prompt for e in TRAIN)
    assert passes[0] != passes[1]
    assert batch_for_step(TRAIN, 3, 2, 42) == batch_for_step(TRAIN, 3, 2, 42)


def test_save_best_only_keeps_the_best_and_the_newest_two(model: Path, tmp_path: Path) -> None:
    config = settings(model, save_best_only=True, checkpoint_every_steps=1, eval_every_steps=1, num_training_steps=6)
    outcome = run(config, tmp_path / "run", Recorder())
    kept = {path.name for path in list_checkpoints(tmp_path / "run")}
    assert kept == {f"step_{outcome.best_step:06d}", "step_000005", "step_000006"}


def test_the_reported_kl_is_finite_at_every_beta(model: Path, tmp_path: Path) -> None:
    for beta in (0.0, 0.5):
        recorder = Recorder()
        run(settings(model, beta=beta, num_training_steps=1), tmp_path / str(beta), recorder)
        assert math.isfinite(recorder.lines[0]["kl_loss"])


def test_an_evaluation_cut_short_by_a_stop_is_made_up_for_on_resume(model: Path, tmp_path: Path) -> None:
    config = settings(model, num_training_steps=6)
    first, second = Recorder(stop_after=4), Recorder()
    run(config, tmp_path / "run", first)  # the stop comes with step 4, where an evaluation is due
    assert [line["step"] for line in first.evaluations] == [0]
    run(config, tmp_path / "run", second, resume=True)
    assert [line["step"] for line in second.evaluations] == [4, 6]


def test_a_finished_run_can_go_on_to_more_steps(model: Path, tmp_path: Path) -> None:
    longer, recorder = Recorder(), Recorder()
    run(settings(model, num_training_steps=3), tmp_path / "run", recorder)
    outcome = run(settings(model, num_training_steps=5), tmp_path / "run", longer, resume=True)
    assert [line["step"] for line in longer.lines] == [4, 5] and outcome.final_step == 5


def test_a_kill_before_the_best_adapter_was_published_is_made_good_on_resume(model: Path, tmp_path: Path) -> None:
    config = settings(model, num_training_steps=8)
    outcome = run(config, tmp_path / "run", Recorder())
    best = tmp_path / "run" / f"step_{outcome.best_step:06d}" / "adapters.safetensors"
    (tmp_path / "run" / "adapters.safetensors").write_bytes(b"of an earlier step")
    run(config, tmp_path / "run", Recorder(), resume=True)
    assert (tmp_path / "run" / "adapters.safetensors").read_bytes() == best.read_bytes()


def test_the_best_of_an_evaluation_made_up_for_after_a_stop_is_published(model: Path, tmp_path: Path) -> None:
    """The stop left a checkpoint of the step before its evaluation; the evaluation then finds the best adapter."""
    config = settings(model, num_training_steps=24, eval_every_steps=8)
    whole, first, second = Recorder(), Recorder(stop_after=8), Recorder()
    run(config, tmp_path / "whole", whole)
    assert whole.evaluations[1]["is_best"], "else this test shows nothing"
    run(config, tmp_path / "parts", first)
    run(config.model_copy(update={"num_training_steps": 9}), tmp_path / "parts", second, resume=True)
    assert second.evaluations[0]["step"] == 8 and second.evaluations[0]["is_best"]
    assert (8, True) in second.saved
    published = (tmp_path / "parts" / "adapters.safetensors").read_bytes()
    best = 9 if second.evaluations[-1]["is_best"] else 8
    assert published == (tmp_path / "parts" / f"step_{best:06d}" / "adapters.safetensors").read_bytes()


def broken_at(*steps: int) -> BuildTeacher:
    """The teacher whose scores are not numbers at these training steps (each has two batches of rollouts)."""

    def build(config: RunConfig, base: LoadedBase) -> TokenTeacher:
        teacher = build_teacher(config, base)
        sound = teacher.states
        prompts = {e.prompt for step in steps for e in batch_for_step(TRAIN, step, config.batch_size, config.seed)}

        def states(conversations: Sequence[Sequence[Message]], completions: Sequence[Sequence[int]]) -> mx.array:
            found = sound(conversations, completions)
            return found * float("nan") if conversations[0][0]["content"] in prompts else found

        teacher.states = states  # type: ignore[method-assign]
        return teacher

    return build


def test_a_step_that_cannot_be_used_is_skipped_counted_and_trained_past(model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    config = settings(model, num_training_steps=3, batch_size=1)
    outcome = train(config, tmp_path / "run", TRAIN, HELD_OUT, broken_at(2), recorder, resume=False)
    assert outcome.end_reason == "finished"
    assert [line["update_skipped"] for line in recorder.lines] == [False, True, False]
    memory = load_checkpoint(tmp_path / "run" / "step_000003").state["memory"]
    assert (memory["skipped_steps"], memory["skipped_in_a_row"]) == (1, 0)


def test_steps_skipped_before_a_kill_count_towards_the_end_after_it(model: Path, tmp_path: Path) -> None:
    """Else a run that is killed now and then would never see that it has diverged."""
    config = settings(model, num_training_steps=9, batch_size=1, checkpoint_every_steps=1)
    broken = broken_at(2, 3, 4)
    stopped = train(config, tmp_path / "run", TRAIN, HELD_OUT, broken, Recorder(stop_after=3), resume=False)
    assert stopped.end_reason == "by_user"
    with pytest.raises(TrainingError, match=r"3 steps in a row, up to step 4 \(3 in all\)"):
        train(config, tmp_path / "run", TRAIN, HELD_OUT, broken, Recorder(), resume=True)
    assert load_checkpoint(list_checkpoints(tmp_path / "run")[-1]).state["memory"]["step"] == 3


def test_a_checkpoint_says_what_it_was_trained_from_and_with(model: Path, tmp_path: Path) -> None:
    config, inputs = settings(model, num_training_steps=2), {"prompts_path": "abc"}
    train(config, tmp_path / "run", TRAIN, HELD_OUT, build_teacher, Recorder(), resume=False, inputs=inputs)
    state = load_checkpoint(tmp_path / "run" / "step_000002").state
    assert state["inputs"] == inputs and state["config"] == config.model_dump(mode="json")
    assert {"python", "mlx", "mlx-lm"} <= set(state["versions"])
    assert state["random"]["seed"] == config.seed and state["data"] == {"prompts": 10, "prompts_drawn": 6}
    with pytest.raises(CheckpointError, match="prompts_path"):
        other = {"prompts_path": "def"}
        train(config, tmp_path / "run", TRAIN, HELD_OUT, build_teacher, Recorder(), resume=True, inputs=other)
    with pytest.raises(CheckpointError, match="learning_rate"):
        run(settings(model, learning_rate=0.1), tmp_path / "run", Recorder(), resume=True)


def test_a_checkpoint_of_another_student_is_refused_before_anything_changes(model: Path, tmp_path: Path) -> None:
    config = settings(model, num_training_steps=1)
    run(config, tmp_path / "run", Recorder())
    for name, value in (("lora_rank", 8), ("lora_keys", ("self_attn.q_proj",))):
        other = settings(model, num_training_steps=1, **{name: value})
        run(other, tmp_path / name, Recorder())
        shutil.rmtree(tmp_path / "run" / "step_000001", ignore_errors=True)
        path = shutil.copytree(tmp_path / name / "step_000001", tmp_path / "run" / "step_000001")
        saved = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps({**saved, "config": {}}))
        manifest = json.loads((path / "MANIFEST.json").read_text())
        manifest["state.json"] = fingerprint_file(path / "state.json")
        (path / "MANIFEST.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match="does not fit the run's student"):
            run(config, tmp_path / "run", Recorder(), resume=True)


def test_half_written_checkpoints_go_when_a_run_begins_or_goes_on(model: Path, tmp_path: Path) -> None:
    for resume in (False, True):
        (tmp_path / "run" / ".tmp-step_000000-ab").mkdir(parents=True)
        run(settings(model, num_training_steps=1), tmp_path / "run", Recorder(), resume=resume)
        assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_the_work_before_each_step_is_waited_for(model: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    recorder = Recorder()
    train(
        settings(model, num_training_steps=2), tmp_path / "run", TRAIN, HELD_OUT, build_teacher, recorder,
        resume=False, before_step=lambda: seen.append(len(recorder.lines)),
    )  # fmt: skip
    assert seen == [0, 0, 1, 2]


def test_a_damaged_best_checkpoint_does_not_replace_the_published_adapter(model: Path, tmp_path: Path) -> None:
    """The newest one is sound, so the run goes on; what was published of the best is still whole."""
    config = settings(model)
    outcome = run(config, tmp_path / "run", Recorder(stop_after=2))
    assert (outcome.best_step, outcome.final_step) == (0, 2)
    published = (tmp_path / "run" / "adapters.safetensors").read_bytes()
    (tmp_path / "run" / "step_000000" / "adapters.safetensors").write_bytes(bytes(len(published)))
    assert run(config, tmp_path / "run", Recorder(stop_after=0), resume=True).final_step == 2
    assert (tmp_path / "run" / "adapters.safetensors").read_bytes() == published
