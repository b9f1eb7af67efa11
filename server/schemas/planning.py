"""What is told before a run: the machine, its models and adapters, what a run would take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from server.schemas.base import Answer, Entry


class ProblemEntry(Entry):
    what: str
    fix: str


class SetupAnswer(Answer):
    ready: Annotated[bool, Field(description="Nothing found that would keep a run from starting.")]
    problems: list[ProblemEntry]
    facts: Annotated[dict[str, Any], Field(description="Device, BLAS, versions, memory, disk, active run.")]


class ModelEntry(Entry):
    name: Annotated[str, Field(description="Give this, or path, as base_model_path or teacher_model_id.")]
    path: str
    architecture: str | None
    quantization: str | None
    size_gb: float | None
    num_parameters_millions: float | None
    problem: Annotated[str | None, Field(description="Why it cannot be used; null when it can.")]


class AdapterEntry(Entry):
    path: Annotated[str, Field(description="Give this as student_adapter_path or to compare_adapters.")]
    base_model: Annotated[str | None, Field(description="Base model named by the adapter's files, as a hint.")]
    rank: int | None
    modified: str | None
    loads: Annotated[
        bool | None, Field(description="By its files: true: it fits its base model; null: that model is not here.")
    ]
    problem: Annotated[str | None, Field(description="Why it cannot be used; null when nothing wrong was found.")]


class ModelsAnswer(Answer):
    models: list[ModelEntry]
    adapters: list[AdapterEntry]
    not_shown: Annotated[int, Field(description="Entries left out; use `contains` to find them.")]


class MethodCostEntry(Entry):
    """What the teacher would cost for one method; probe is auto's first phase and probe_teacher's whole job."""

    method: str
    guidance_level: str | None
    calls: int
    cache_hits: Annotated[int, Field(description="Requests that a stored reply answers, for nothing.")]
    input_tokens: int
    output_tokens: int
    expected_usd: float
    worst_usd: Annotated[float, Field(description="Every request at its most: what the ledger would reserve in all.")]
    batch_expected_usd: Annotated[float | None, Field(description="With teacher_batch_api; null where none can wait.")]
    batch_worst_usd: float | None
    largest_call_usd: Annotated[float, Field(description="What the dearest single call reserves.")]


class PaidEntry(Entry):
    """What a paid teacher would cost."""

    model: str
    prices_version: str
    pays_usd: Annotated[float, Field(description="Expected, with this configuration's options.")]
    pays_at_most_usd: Annotated[float, Field(description="Worst case; the budget ends the run before that.")]
    budget_usd: float
    month_left_usd: Annotated[float, Field(description="Left of the whole installation's budget for this month.")]
    uncovered_usd: Annotated[float, Field(description="Expected cost above what may be spent.")]
    coverage: Annotated[str, Field(description="What the budget will and will not cover.")]
    chosen: MethodCostEntry
    methods: Annotated[list[MethodCostEntry], Field(description="All methods, for comparison.")]


class EstimateAnswer(Answer):
    steps: int
    rollouts: int
    teacher_calls: int
    completion_tokens: Annotated[int, Field(description="Expected number the student writes in training.")]
    completion_tokens_max: int
    teacher_tokens: Annotated[int, Field(description="Tokens a local teacher reads.")]
    evaluations: int
    cost_usd: Annotated[float, Field(description="Expected; 0 for a local teacher.")]
    paid: Annotated[PaidEntry | None, Field(description="Null for a local teacher.")] = None
    minutes_low: float
    minutes_expected: float
    minutes_high: float
    basis: Literal["measured", "guess"]
    basis_sentence: Annotated[str, Field(description="Where the minutes come from.")]
    peak_memory_gb: float
    disk_gb: float
    train_prompts: int
    held_out_prompts: int
    notes: list[str]
    warnings: list[str]
