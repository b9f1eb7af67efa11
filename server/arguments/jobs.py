"""What comparisons and probes take: one to start, or one to fetch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict, model_validator

from opd_core.comparison import MAX_CANDIDATES, Candidate
from opd_core.config import Frozen, RunConfig
from server.arguments.runs import DEFAULT_WAIT_SECONDS, MAX_WAIT_SECONDS, Seconds


class CompareArguments(Frozen):
    job_id: str | None = Field(
        None, min_length=1, max_length=64, description="Fetch a comparison started before; nothing else is needed."
    )
    run_id: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Run whose base, teacher, held-out prompts and check are used. Left out: the latest finished run.",
    )
    candidates: Annotated[tuple[Candidate, ...], Strict(False), Field(max_length=MAX_CANDIDATES)] = Field(
        (),
        description="What to compare: a name and an mlx-lm adapter folder (adapter_path; left out: the base alone). "
        "Left out: base, the run's incoming adapter if any, its distilled adapter. All are measured against the run's "
        "incoming adapter, else the base, else the first: give two adapters alone to measure them against each other.",
    )
    max_samples: int | None = Field(
        None, ge=1, le=10_000, description="Most held-out prompts; left out: as many as the run's evaluations use."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the confidence intervals and the samples shown.")
    judge: bool = Field(
        False, description="Also let a paid text teacher judge the answers, blindly; needs judge_budget_usd."
    )
    judge_budget_usd: float | None = Field(
        None, gt=0.0, le=1e6, description="Most the judging may spend: a budget of its own that the user agreed to."
    )
    judge_model_id: str | None = Field(
        None, min_length=1, max_length=200, description="The judge; left out: the run's remote teacher, or the usual."
    )
    confirmed: bool = Field(False, description="The user agreed to a judge_budget_usd above $1.")
    timeout_seconds: Seconds = Field(
        DEFAULT_WAIT_SECONDS, description=f"Longest wait for the result; at most {MAX_WAIT_SECONDS:g}."
    )

    @model_validator(mode="after")
    def _judging_has_a_budget(self) -> CompareArguments:
        if self.judge and self.judge_budget_usd is None:
            raise ValueError(
                "judge true needs judge_budget_usd: ask the user how many dollars the judging may spend (each held-out "
                "prompt takes two calls a candidate)"
            )
        if not self.judge and (self.judge_budget_usd is not None or self.judge_model_id is not None):
            raise ValueError("judge_budget_usd and judge_model_id are for judging; give judge true, or leave them out")
        return self


class ProbeArguments(Frozen):
    """A probe to start (`config`: the fields of a run, given side by side with the others), or one to fetch."""

    job_id: str | None = Field(
        None, min_length=1, max_length=64, description="Fetch a probe started before; nothing else is needed."
    )
    timeout_seconds: Seconds = Field(
        DEFAULT_WAIT_SECONDS, description=f"Longest wait for the result; at most {MAX_WAIT_SECONDS:g}."
    )
    config: RunConfig | None = None


OWN_PROBE_ARGUMENTS = frozenset(ProbeArguments.model_fields) - {"config"}
