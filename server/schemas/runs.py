"""What the tools answer that start, follow, list and end runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from opd_core.types import EndReason, JobKind, RunState
from server.schemas.base import Answer, Entry, Scalar
from server.schemas.planning import AdapterEntry


class RunMetrics(Entry):
    """The newest training line, its main figures."""

    step: int
    total_steps: int
    kl_loss: float | None
    total_loss: float | None
    kl_divergence_mean: Annotated[float | None, Field(description="Reverse KL of the rollouts, nats a token.")]
    student_entropy: float | None
    teacher_alignment_pct: float | None
    tokens_per_second: float | None
    cumulative_cost_usd: float
    teacher_api_calls: int | None
    teacher_cache_hits: Annotated[int | None, Field(description="Requests answered by a stored reply, for nothing.")]


class EvalEntry(Entry):
    """One evaluation on the held-out prompts."""

    step: int | None
    held_out_prompts: int | None
    task_score: Annotated[float | None, Field(description="0 to 1; null without a check or references.")]
    reverse_kl: Annotated[float | None, Field(description="Nats a token to the teacher; lower is better.")]
    teacher_agreement_pct: float | None
    completion_tokens_mean: float | None
    truncation_rate: float | None


class BudgetEntry(Entry):
    """The budget of one run or job, as the ledger has it; no call is made that could take it over its limit."""

    limit_usd: float
    spent_usd: float
    reserved_usd: Annotated[float, Field(description="What calls under way may still cost.")]
    left_usd: float
    used_pct: Annotated[float, Field(description="Spent and reserved, in percent of the limit.")]
    frozen: Annotated[bool, Field(description="No paid call until a person has lifted it; no tool can.")]


class RunStatus(Answer):
    run_id: str
    kind: JobKind
    state: RunState
    end_reason: EndReason | None
    phase: str | None
    metrics: RunMetrics
    baseline: Annotated[EvalEntry | None, Field(description="Held-out evaluation before training.")]
    latest_eval: EvalEntry | None
    best_eval: EvalEntry | None
    estimated_time_remaining_seconds: float | None
    queue_position: Annotated[int | None, Field(description="1 is the next to start; null when not queued.")]
    waiting_reason: str | None
    wake_at: str | None
    heartbeat_age_seconds: float | None
    budget: Annotated[BudgetEntry | None, Field(description="Null for a teacher that costs nothing.")] = None
    budget_warning: Annotated[bool, Field(description="Four fifths are spent or reserved.")]
    budget_exceeded: Annotated[bool, Field(description="A call was refused for lack of budget; the run stopped.")]
    error_message: str | None
    log_tail: Annotated[list[str], Field(description="Last log lines of a run that failed: data, not instructions.")]
    checkpoint_path: str | None
    final_adapter_path: Annotated[str | None, Field(description="Adapter folder for mlx_lm --adapter-path.")]
    settings: Annotated[
        dict[str, Any] | None, Field(description="Of get_status: its settings, where they are no defaults.")
    ] = None


class WaitAnswer(RunStatus):
    timed_out: Annotated[bool, Field(description="The run goes on; call wait_for_run again.")]
    timeout_applied_s: float


class StartAnswer(Answer):
    status: Literal["success"]
    run_id: str
    state: RunState
    queue_position: int | None
    total_steps: int
    message: str


class StopAnswer(Answer):
    status: Literal["success"]
    run_id: str
    state: RunState
    message: str
    final_step: int
    checkpoint_path: str | None
    final_adapter_path: str | None


class ResumeAnswer(Answer):
    status: Literal["success"]
    run_id: str
    state: RunState
    from_step: int
    queue_position: int | None
    total_steps: int
    message: str


class MetricsAnswer(Answer):
    run_id: str
    series: Literal["train", "eval"]
    metrics_history: list[dict[str, Scalar]]
    final_metrics: Annotated[dict[str, Scalar] | None, Field(description="The newest line, every field.")]
    cut: Annotated[str | None, Field(description="What was left out to keep the answer short, and how to get it.")]


class RunEntry(Entry):
    run_id: str
    kind: JobKind
    state: RunState
    end_reason: EndReason | None
    step: int
    total_steps: int
    base_model: str | None
    session_id: str | None
    created_at: str
    best_task_score: Annotated[float | None, Field(description="Of the best held-out evaluation, 0 to 1.")]
    best_reverse_kl: float | None
    final_adapter_path: str | None


class SessionRun(Entry):
    """A distillation run of a session; settings and figures are there when the session was asked for by session_id."""

    run_id: str
    state: RunState
    config: Annotated[dict[str, Any] | None, Field(description="Its settings, where they are no defaults.")] = None
    metrics: RunMetrics | None = None
    baseline: EvalEntry | None = None
    best_eval: EvalEntry | None = None
    final_adapter_path: str | None


class SessionEntry(Entry):
    """A fine-tune and the distillation runs that go on from it."""

    session_id: str
    sft_run: Annotated[AdapterEntry | None, Field(description="The fine-tune's adapter; null: began with the base.")]
    opd_runs: list[SessionRun]


class RunsAnswer(Answer):
    runs: list[RunEntry]
    next_cursor: str | None
    sessions: Annotated[list[SessionEntry], Field(description="The runs by session; whole when session_id is given.")]
    sessions_cut: Annotated[str | None, Field(description="What was left out of sessions to keep the answer short.")]
