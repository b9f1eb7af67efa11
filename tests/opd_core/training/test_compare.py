"""Adapters side by side: the arithmetic on hand-made evaluations, and the whole job on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from opd_core.comparison import Candidate, ComparisonSpec
from opd_core.config import RunConfig
from opd_core.errors import CompatibilityError
from opd_core.intervals import wilson_interval
from opd_core.teachers import build_teacher
from opd_core.training.compare import compare
from opd_core.training.comparison_table import (
    difference_entry,
    interval_entry,
    judged_rows,
    metric_values,
    summary_text,
    table_rows,
)
from opd_core.training.evaluator import Evaluation, SampleScore
from opd_core.training.lora import NewAdapter, load_base, make_student
from tests.model_folders import make_adapter
from tests.opd_core.training.scripted_teacher import ScriptedTeacher
from tests.tiny import write_tiny_model


class Observer:
    """Keeps what it is told; stops when asked to."""

    def __init__(self, stop_after_phases: int = 10**6) -> None:
        self.phases: list[tuple[str, str, float | None]] = []
        self.lines: list[str] = []
        self._stop_after_phases = stop_after_phases

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None:
        self.phases.append((name, detail, fraction))

    def log(self, message: str) -> None:
        self.lines.append(message)

    def should_stop(self) -> bool:
        return len(self.phases) >= self._stop_after_phases


def sample(score: float | None, kl: float | None, tokens: int = 10, agreement: float | None = 0.5) -> SampleScore:
    return SampleScore("id", "prompt", "answer", tokens, "stop", 0.0, kl, agreement, score)


def evaluation(scores: list[float | None], kls: list[float | None], tokens: list[int] | None = None) -> Evaluation:
    lengths = tokens or [10] * len(scores)
    return Evaluation(tuple(map(sample, scores, kls, lengths)), ())


def test_token_metrics_keep_the_mean_over_tokens_that_evaluations_report() -> None:
    done = evaluation([None] * 4, [0.1, 0.9, 0.4, 0.2], [1, 30, 5, 12])
    entry = interval_entry(metric_values(done.samples)["reverse_kl"])
    assert entry is not None
    assert entry["mean"] == pytest.approx(done.summary()["reverse_kl"]) == pytest.approx((0.1 + 27 + 2 + 2.4) / 48)
    assert entry["low"] < entry["mean"] < entry["high"]


def test_linearised_interval_is_the_plain_one_when_lengths_are_equal() -> None:
    values = metric_values(evaluation([None] * 3, [0.1, 0.9, 0.4]).samples)["reverse_kl"]
    assert values == pytest.approx([0.1, 0.9, 0.4])


def test_pass_or_fail_scores_get_wilsons_interval_and_graded_ones_students() -> None:
    entry = interval_entry([1.0, 1.0, 1.0, 0.0])
    assert entry is not None and (entry["low"], entry["high"]) == wilson_interval(3, 4)[1:]
    graded = interval_entry([1.0, 0.5, 1.0, 0.0])
    assert graded is not None and graded["mean"] == 0.625 and graded["high"] > 1.0


def test_figures_that_could_not_be_taken_are_null() -> None:
    values = metric_values(evaluation([None, None], [None, None]).samples)
    assert interval_entry(values["reverse_kl"]) is None
    assert difference_entry(values["task_score"], values["task_score"], "task_score", 0) is None


def test_one_graded_sample_has_open_ends_that_json_can_hold() -> None:
    entry = interval_entry([0.5])
    assert entry == {"mean": 0.5, "low": None, "high": None, "samples": 1}


def test_difference_is_taken_prompt_by_prompt() -> None:
    """Two noisy columns whose difference is constant: only pairing can show it."""
    reference: list[float | None] = [0.1, 0.9, 0.2, 0.8, 0.5, 0.4, 0.95, 0.05]
    candidate = [None if value is None else value - 0.02 for value in reference]
    entry = difference_entry(candidate, reference, "reverse_kl", seed=0)
    assert entry is not None and entry["verdict"] == "better" and entry["pairs"] == 8
    assert (entry["low"], entry["high"]) == pytest.approx((-0.02, -0.02))


def test_prompts_that_lack_one_side_are_left_out_of_the_difference() -> None:
    entry = difference_entry([1.0, None, 1.0], [0.0, 0.0, None], "task_score", seed=0)
    assert entry is not None and entry["pairs"] == 1 and entry["verdict"] == "no difference shown"


def test_rows_compare_everybody_with_the_reference() -> None:
    zeros, ones = [0.0] * 20, [1.0] * 20
    rows = table_rows(
        {
            "base": evaluation([*zeros], [0.8] * 20),
            "good": evaluation([*ones], [0.1] * 20),
            "same": evaluation([*zeros], [0.8] * 20),
        },
        "base",
        "task_score",
        seed=0,
    )
    assert rows["base"]["versus_reference"] is None and rows["base"]["verdict"] is None
    assert rows["good"]["verdict"] == "better" and rows["good"]["versus_reference"]["reverse_kl"]["verdict"] == "better"
    assert rows["same"]["verdict"] == "no difference shown"
    assert rows["good"]["versus_reference"]["completion_tokens"]["verdict"] is None, "length is neither good nor bad"
    text = summary_text(judged_rows(rows, None, "task_score"), "base", "task_score", 20, {"mean": 1.0})
    assert "good has task score 100.0 %: better" in text and "The teacher itself has task score 100.0 %" in text


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, an adapter on it that changes its answers, and prompts."""
    folder = tmp_path_factory.mktemp("compare")
    base = load_base(write_tiny_model(folder / "base"))
    student = make_student(base, None, NewAdapter(rank=4, scale=8.0))
    weights = {
        name: mx.random.normal(value.shape, key=mx.random.key(7)) * 0.3
        for name, value in student.adapter_weights().items()
    }
    (folder / "adapter").mkdir()
    mx.save_safetensors(str(folder / "adapter" / "adapters.safetensors"), weights)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(student.adapter_config))
    lines = [json.dumps({"prompt": f"word {number}", "reference": "x"}) for number in range(30)]
    (folder / "train.jsonl").write_text(lines[0])
    (folder / "held_out.jsonl").write_text("\n".join(lines[1:]))
    return folder


def config(folder: Path, **changes: Any) -> RunConfig:
    fields: dict[str, Any] = {
        "base_model_path": str(folder / "base"),
        "prompts_path": str(folder / "train.jsonl"),
        "validation_prompts_path": str(folder / "held_out.jsonl"),
        "teacher_system_prompt": "Say x.",
        "rollout_max_tokens": 6,
        "eval_max_samples": 12,
        "check": {"kind": "regex", "pattern": ".", "must_match": "search"},
    }
    return RunConfig(**(fields | changes))


def spec(*candidates: tuple[str, Path | None], **changes: Any) -> ComparisonSpec:
    listed = [Candidate(name=name, adapter_path=None if path is None else str(path)) for name, path in candidates]
    return ComparisonSpec(job_id="cmp_1", run_id="opd_1", candidates=tuple(listed), **changes)


def test_whole_comparison_is_plain_json_on_the_same_prompts(folders: Path) -> None:
    observer = Observer()
    result = compare(spec(("base", None), ("new", folders / "adapter")), config(folders), build_teacher, observer)
    assert result is not None
    json.dumps(result, allow_nan=False)
    assert (result["job_id"], result["run_id"], result["reference"]) == ("cmp_1", "opd_1", "base")
    assert result["held_out_prompts"] == 12 and result["primary_metric"] == "task_score"
    base, new = result["rows"]
    assert base["reverse_kl"]["samples"] == new["versus_reference"]["reverse_kl"]["pairs"] == 12
    assert base["reverse_kl"]["mean"] != new["reverse_kl"]["mean"]
    assert result["teacher"]["task_score"]["samples"] == 12 and "context" in result["teacher"]["name"]
    assert len(result["samples"]) == 4
    assert set(result["samples"][0]["answers"]) == {"base", "new"} and result["samples"][0]["reference"] == "x"
    fractions = [fraction for _, _, fraction in observer.phases if fraction is not None]
    assert fractions == sorted(fractions) and fractions[-1] <= 1.0


def test_adapter_that_does_not_load_is_reported_and_the_rest_compared(folders: Path, tmp_path: Path) -> None:
    foreign = make_adapter(tmp_path / "foreign", hidden=64)
    candidates = (("base", None), ("foreign", foreign), ("gone", tmp_path / "gone"), ("new", folders / "adapter"))
    observer = Observer()
    result = compare(spec(*candidates), config(folders), build_teacher, observer)
    assert result is not None
    rows = {row["name"]: row for row in result["rows"]}
    assert "(64, 4)" in rows["foreign"]["error"] and "gone" in rows["gone"]["error"]
    assert rows["foreign"]["reverse_kl"] is None and rows["foreign"].keys() == rows["new"].keys()
    assert rows["new"]["error"] is None and rows["new"]["versus_reference"] is not None
    assert any("foreign could not be compared" in line for line in observer.lines)


def test_no_candidate_that_loads_is_an_error(folders: Path, tmp_path: Path) -> None:
    foreign = make_adapter(tmp_path / "foreign", hidden=64)
    with pytest.raises(CompatibilityError, match="does not fit"):
        compare(spec(("foreign", foreign)), config(folders), build_teacher, Observer())


def test_incoming_adapter_is_the_reference_when_there_is_one(folders: Path) -> None:
    run = config(folders, student_adapter_path=str(folders / "adapter"), check=None)
    result = compare(spec(("base", None), ("sft", folders / "adapter")), run, build_teacher, Observer())
    assert result is not None and result["reference"] == "sft" and result["primary_metric"] == "reverse_kl"
    assert result["rows"][1]["versus_reference"] is None and result["teacher"]["task_score"] is None


def test_sample_count_and_seed_of_the_spec_are_used(folders: Path) -> None:
    few = compare(spec(("base", None), max_samples=2), config(folders), build_teacher, Observer())
    assert few is not None and few["held_out_prompts"] == 2 and len(few["samples"]) == 2
    shown = []
    for seed in (0, 1):
        result = compare(spec(("base", None), seed=seed), config(folders), build_teacher, Observer())
        assert result is not None
        shown.append([entry["prompt"] for entry in result["samples"]])
    assert shown[0] != shown[1]


@pytest.mark.parametrize("after", [1, 2, 5])
def test_stopped_comparison_has_no_result(folders: Path, after: int) -> None:
    assert compare(spec(("base", None)), config(folders), build_teacher, Observer(stop_after_phases=after)) is None


def test_judge_compares_candidates_with_the_reference_and_the_check_still_decides(folders: Path) -> None:
    judge = ScriptedTeacher(prefer=lambda pair: "second")
    observer = Observer()
    candidates = (("base", None), ("new", folders / "adapter"))
    result = compare(spec(*candidates), config(folders), build_teacher, observer, judge=judge)
    assert result is not None
    json.dumps(result, allow_nan=False)
    assert result["judge"]["name"] == "scripted" and result["judge"]["calls"] == judge.count("judge") > 0
    base, new = result["rows"]
    assert base["judged"] is None and new["judged"]["losses"] == judge.count("judge")
    assert (
        result["primary_metric"] == "task_score" and new["verdict"] == new["versus_reference"]["task_score"]["verdict"]
    )
    assert any(name == "judging" for name, _, _ in observer.phases)
    fractions = [fraction for _, _, fraction in observer.phases if fraction is not None]
    assert fractions == sorted(fractions)


def test_run_of_a_remote_teacher_is_compared_without_one_that_scores_tokens(folders: Path) -> None:
    def never(*_: object) -> Any:
        raise AssertionError("no token-level teacher is made")

    run = config(folders, teacher_kind="claude", teacher_model_id="claude-sonnet-5-5", teacher_system_prompt=None)
    result = compare(spec(("base", None), ("new", folders / "adapter")), run, never, Observer())
    assert result is not None
    json.dumps(result, allow_nan=False)
    assert result["teacher"] == {"name": "claude-sonnet-5-5", "task_score": None}
    assert result["rows"][1]["reverse_kl"] is None and result["rows"][1]["task_score"]["samples"] == 12
    assert result["samples"][0]["teacher"] is None and result["judge"] is None


def test_a_judge_needs_a_budget_of_its_own() -> None:
    with pytest.raises(ValueError, match="judge_budget_usd"):
        spec(("base", None), judge=True)
    with pytest.raises(ValueError, match="give judge true"):
        spec(("base", None), judge_budget_usd=1.0)
