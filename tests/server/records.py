"""Rows, reports and results as the use cases return them, for tests of what is made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from opd_core.blas import BlasReport
from opd_core.control.estimate.costs import MethodCost, PaidEstimate
from opd_core.control.estimate.estimating import Estimate
from opd_core.control.machine import Memory
from opd_core.control.models import LocalModels
from opd_core.control.setup_check import SetupProblem, SetupReport
from opd_core.state.rows import RunRow

TRAIN_LINE: dict[str, Any] = {
    "step": 12,
    "kl_loss": 0.4256789,
    "total_loss": 0.4256789,
    "kl_divergence_mean": 0.41,
    "student_entropy": 1.25,
    "teacher_alignment_pct": 81.25,
    "tokens_per_second": 55.5555,
    "cumulative_cost_usd": 0.0,
}
BASELINE: dict[str, Any] = {"step": 0, "held_out_prompts": 40, "task_score": 0.0, "reverse_kl": 0.83}
BEST: dict[str, Any] = {"step": 30, "held_out_prompts": 40, "task_score": 0.975, "reverse_kl": 0.031}


def make_row(**changes: Any) -> RunRow:
    """A running distillation at step 12 of 30."""
    row = RunRow(
        number=1,
        run_id="opd_1",
        kind="distillation",
        session_id=None,
        client_request_id=None,
        state="running",
        end_reason=None,
        config={"base_model_path": "/models/tiny", "max_budget_usd": 10.0},
        created_at="2026-11-23T12:00:00.000Z",
        started_at=None,
        finished_at=None,
        step=12,
        total_steps=30,
        steps_per_second=0.1,
        phase="rollout",
        phase_detail=None,
        phase_fraction=None,
        heartbeat_at=None,
        heartbeat_age_seconds=0.5,
        waiting_reason=None,
        wake_at=None,
        message="",
        error_message=None,
        epoch=1,
        pid=None,
        process_identity=None,
        stop_requested=False,
        queue_position=None,
        latest_metrics=TRAIN_LINE,
        latest_eval=None,
        baseline_eval=BASELINE,
        best_eval=None,
        best_step=None,
        checkpoint_path=None,
        final_adapter_path=None,
        result_path=None,
    )
    return replace(row, **changes)


def completed(**changes: Any) -> RunRow:
    """The same run at its end."""
    end: dict[str, Any] = {"state": "completed", "end_reason": "finished", "step": 30, "best_eval": BEST}
    return make_row(**{**end, "final_adapter_path": "/home/checkpoints/opd_1", **changes})


def make_estimate(**changes: Any) -> Estimate:
    """A small run of a local teacher."""
    estimate = Estimate(
        steps=30,
        rollouts=240,
        teacher_calls=0,
        completion_tokens=4800,
        completion_tokens_max=5760,
        evaluations=4,
        teacher_tokens=9600,
        cost_usd=0.0,
        minutes_low=2.0,
        minutes_expected=4.43219,
        minutes_high=8.0,
        basis="guess",
        basis_sentence="The minutes are a guess.",
        peak_memory_gb=1.23456,
        disk_gb=0.1,
        train_prompts=80,
        held_out_prompts=40,
        notes=("The teacher is a model on this machine.",),
        warnings=("learning_rate is high",),
    )
    return replace(estimate, **changes)


def make_paid(**changes: Any) -> PaidEstimate:
    """What a paid teacher of that run would cost."""
    chosen = MethodCost("contrast", None, 72, 8, 51_000, 9_000, 0.19123456, 2.5, 25 * 10**11, 0.0956, 1.25, 0.0312)
    probe = replace(chosen, method="probe", expected_usd=0.08, worst_usd=1.6)
    paid = PaidEstimate(
        model="claude-sonnet-5-5",
        prices_version="2026-10-25",
        chosen=chosen,
        methods=(probe, chosen),
        pays_usd=chosen.expected_usd,
        pays_at_most_usd=chosen.worst_usd,
        budget_usd=0.1,
        month_left_usd=7.5,
        uncovered_usd=0.0912,
        coverage="The budget of $0.10 covers about 52 % of the calls that are expected.",
        notes=(),
    )
    return replace(paid, **changes)


def paid(*, limit: float = 10.0, spent: float = 0.0, reserved: float = 0.0, **changes: Any) -> dict[str, Any]:
    """What the ledger adds to a row, in dollars."""
    near = spent + reserved >= 0.8 * limit
    return {"budget_usd": limit, "spent_usd": spent, "reserved_usd": reserved, "budget_warning": near, **changes}


def make_report(**changes: Any) -> SetupReport:
    """A machine on which nothing is wrong."""
    report = SetupReport(
        home="/home/opd",
        python="3.11.0",
        sqlite="3.45, journal wal",
        device="cpu",
        versions={"mlx": "0.32.4"},
        memory=Memory(16 * 10**9, 8 * 10**9),
        disk_free_bytes=10**11,
        blas=BlasReport("system", "libopenblas.so.0", "cpu", 123.4, "OpenBLAS of the system"),
        models=LocalModels((), ()),
        active_run=None,
        problems=(),
    )
    return replace(report, **changes)


BLOCKING = SetupProblem("The home cannot be written.", "Make it writable.", blocking=True)


CONFIG = {"base_model_path": "tiny", "prompts_path": "/data/prompts.txt", "teacher_system_prompt": "Answer in JSON."}
COMPARED: dict[str, Any] = {
    "job_id": "cmp_1",
    "run_id": "opd_1",
    "teacher": {"name": "tiny", "task_score": {"mean": 1.0, "low": 0.912, "high": 1.0, "samples": 40}},
    "held_out_prompts": 40,
    "primary_metric": "task_score",
    "reference": "base",
    "summary": "On 40 held-out prompts, base has task score 0.0 %.",
    "rows": [
        {
            "name": name,
            "adapter_path": path,
            "error": None,
            "task_score": {"mean": score, "low": 0.0, "high": 1.0, "samples": 40},
            "reverse_kl": {"mean": 0.8312345, "low": 0.7, "high": 0.9, "samples": 40},
            "teacher_agreement_pct": None,
            "completion_tokens": {"mean": 18.0, "low": None, "high": None, "samples": 40},
            "truncation_rate": 0.0,
            "repetition_rate": 0.0,
            "versus_reference": None,
            "verdict": verdict,
        }
        for name, path, score, verdict in [("base", None, 0.0, None), ("distilled", "/a", 0.975, "better")]
    ],
    "samples": [
        {
            "prompt": "hi \x1b[31m",
            "reference": None,
            "answers": {"base": "x" * 400, "distilled": "y" * 400},
            "teacher": "z",
        }
    ],
}
JUDGED: dict[str, Any] = {
    "win_rate": 0.85,
    "length_controlled_win_rate": {"mean": 0.81234, "low": 0.66, "high": 0.9},
    "wins": 30,
    "losses": 2,
    "ties": 8,
    "inconsistent": 3,
    "pairs": 40,
    "unusable": 0,
    "verdict": "better",
}
PROBED: dict[str, Any] = {
    "measure": "task_score",
    "held_out_prompts": 24,
    "method": "coach",
    "guidance_level": "examples",
    "reason": "method coach at level examples: examples 0.00 → 1.00.",
    "cost_usd": 0.01234567,
    "levels": [
        {
            "level": level,
            "score_without": 0.0,
            "score_with": gap,
            "gap": {"mean": gap, "low": gap, "high": gap},
            "pairs": 24,
            "verdict": "better" if gap else "no difference shown",
            "completion_tokens_mean": 11.5,
            "cost_usd": 0.004,
            "calls": 4,
            "cache_hits": 0,
            "seconds": 3.2,
            "note": "",
        }
        for level, gap in [("examples", 1.0), ("lesson", 0.0)]
    ]
    + [
        {
            "level": "critique",
            "score_without": None,
            "score_with": None,
            "gap": None,
            "pairs": 0,
            "verdict": None,
            "completion_tokens_mean": None,
            "cost_usd": 0.0,
            "calls": 0,
            "cache_hits": 0,
            "seconds": 0.0,
            "note": "not measured: the budget is used up",
        }
    ],
}
