"""What a comparison job is asked to do: which adapters, on the held-out prompts of which run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict, model_validator

from opd_core.config import Frozen, RunConfig, Text

MAX_CANDIDATES = 6
Name = Annotated[str, Field(min_length=1, max_length=64)]


class Candidate(Frozen):
    """One column of the table: the run's base model with an adapter, or alone."""

    name: Name
    adapter_path: Text | None = None


class ComparisonSpec(Frozen):
    """One comparison. The run gives base model, teacher, held-out prompts, check and length limit."""

    job_id: Name | None = None
    run_id: Name
    candidates: Annotated[tuple[Candidate, ...], Strict(False), Field(min_length=1, max_length=MAX_CANDIDATES)]
    max_samples: int | None = Field(
        default=None, ge=1, le=10_000, description="Most held-out prompts; default the run's own."
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of the intervals and of the samples shown.")
    judge: bool = Field(default=False, description="Let a text teacher judge the answers, blindly and in both orders.")
    judge_budget_usd: float | None = Field(
        default=None, gt=0.0, le=1e6, description="Most the judging may spend; a budget of its own."
    )
    judge_model_id: Text | None = Field(
        default=None, description="The judge; default the run's remote teacher, else the usual one."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> ComparisonSpec:
        names = [candidate.name for candidate in self.candidates]
        if len(set(names)) != len(names):
            raise ValueError(f"two candidates have the same name: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _judging_has_a_budget(self) -> ComparisonSpec:
        if self.judge and self.judge_budget_usd is None:
            raise ValueError("judge needs judge_budget_usd: ask the user how many dollars the judging may cost")
        if not self.judge and (self.judge_budget_usd is not None or self.judge_model_id is not None):
            raise ValueError("judge_budget_usd and judge_model_id are for judging; give judge true, or leave them out")
        return self


def default_candidates(config: RunConfig, distilled_adapter: str | None) -> tuple[Candidate, ...]:
    """Base, the run's incoming adapter if it had one, and its distilled adapter if there is one yet."""
    candidates = [Candidate(name="base")]
    if config.student_adapter_path is not None:
        candidates.append(Candidate(name="incoming", adapter_path=config.student_adapter_path))
    if distilled_adapter is not None:
        candidates.append(Candidate(name="distilled", adapter_path=distilled_adapter))
    return tuple(candidates)
