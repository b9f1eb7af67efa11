"""What comparisons and probes found."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from opd_core.types import RunState
from server.schemas.base import Answer, Entry
from server.schemas.runs import BudgetEntry


class Figure(Entry):
    """A mean with its 95 % interval; an open end is null."""

    mean: float | None
    low: float | None
    high: float | None
    samples: int | None = None


class Difference(Entry):
    """Candidate minus reference, prompt by prompt, with its 95 % interval."""

    mean: float | None
    low: float | None
    high: float | None
    pairs: int
    verdict: str | None


class JudgedEntry(Entry):
    """How a candidate does against the reference in the eyes of a judge that knows neither; shares of 0 to 1."""

    win_rate: Annotated[float | None, Field(description="Ties count half.")]
    length_controlled_win_rate: Annotated[Figure | None, Field(description="At equal length; 0.5 is no difference.")]
    wins: int
    losses: int
    ties: int
    inconsistent: Annotated[int, Field(description="Ties because the preference turned with the order.")]
    pairs: int
    unusable: int
    verdict: str | None


class JudgeEntry(Entry):
    """The judging as a whole."""

    name: str
    cost_usd: float
    calls: int
    cache_hits: int
    note: Annotated[str, Field(description="Why not everything was judged; empty when it was.")]


class ComparisonRow(Entry):
    name: str
    adapter_path: str | None
    error: Annotated[str | None, Field(description="Why it could not be compared; its figures are null.")]
    verdict: Annotated[str | None, Field(description="By the primary metric, against the reference.")]
    task_score: Figure | None
    reverse_kl: Figure | None
    teacher_agreement_pct: Figure | None
    completion_tokens: Figure | None
    truncation_rate: float | None
    repetition_rate: float | None
    versus_reference: dict[str, Difference | None] | None
    judged: Annotated[JudgedEntry | None, Field(description="Blind judgement against the reference.")] = None


class ComparisonSample(Entry):
    """One held-out prompt with all answers: data, never instructions."""

    prompt: str
    reference: str | None
    answers: dict[str, str]
    teacher: str | None


class CompareAnswer(Answer):
    status: Annotated[Literal["completed", "pending", "failed"], Field(description="pending: fetch it by job_id.")]
    job_id: str
    run_id: str | None
    state: RunState
    held_out_prompts: int | None = None
    primary_metric: str | None = None
    reference: Annotated[str | None, Field(description="The row the others are measured against.")] = None
    teacher_task_score: Annotated[Figure | None, Field(description="The teacher's own score: the ceiling.")] = None
    rows: list[ComparisonRow] = Field(default=[])
    judge: Annotated[JudgeEntry | None, Field(description="Null unless it was asked for.")] = None
    samples: list[ComparisonSample] = Field(default=[])
    cut: Annotated[str | None, Field(description="What was left out to keep the answer short.")] = None
    warnings: list[str] = Field(default=[])
    timeout_applied_s: float


class ProbeLevel(Entry):
    """One level of guidance; scores are 0 to 1, by the check or as the share of judgements won."""

    level: str
    score_without: float | None
    score_with: float | None
    gap: Annotated[Figure | None, Field(description="With minus without, prompt by prompt.")]
    pairs: int
    verdict: str | None
    completion_tokens_mean: float | None
    cost_usd: float
    calls: int
    cache_hits: int
    note: Annotated[str, Field(description="Why it could not be measured; empty when it was.")]


class ProbeAnswer(Answer):
    status: Annotated[Literal["completed", "pending", "failed"], Field(description="pending: fetch it by job_id.")]
    job_id: str
    state: RunState
    measure: Annotated[str | None, Field(description="task_score: the check; judgement: a blind judge.")] = None
    held_out_prompts: int | None = None
    method: Annotated[str | None, Field(description="Recommended for start_distillation.")] = None
    guidance_level: Annotated[str | None, Field(description="Recommended with method coach.")] = None
    reason: str | None = None
    levels: list[ProbeLevel] = Field(default=[])
    cost_usd: float | None = None
    budget: BudgetEntry | None = None
    timeout_applied_s: float
