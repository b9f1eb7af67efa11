"""What the tools take that look at this machine and start, follow, list and end runs.

`start_distillation` and `estimate_cost` take the fields of `RunConfig` itself.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from opd_core.config import Frozen
from opd_core.types import RunState

DEFAULT_WAIT_SECONDS = 20.0
MAX_WAIT_SECONDS = 50.0

RunId = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=64,
        description="Run or job id, or a unique beginning of one. Left out: the current run, else the latest.",
    ),
]

Seconds = Annotated[float, Field(ge=0, le=3600)]


class NoArguments(Frozen):
    """For tools that take nothing."""


class ModelsArguments(Frozen):
    contains: str | None = Field(
        None, min_length=1, max_length=100, description="Show only names and paths with this text in them."
    )


class RunArguments(Frozen):
    run_id: RunId = None


class WaitArguments(RunArguments):
    timeout_seconds: Seconds = Field(
        DEFAULT_WAIT_SECONDS, description=f"Longest wait; more than {MAX_WAIT_SECONDS:g} is shortened to that."
    )


class MetricsArguments(RunArguments):
    series: Literal["train", "eval"] = Field("train", description="train: one line a step; eval: held-out evaluations.")
    points: int = Field(40, ge=1, le=200, description="Most lines returned, evenly thinned; first and last are kept.")
    since_step: int | None = Field(None, ge=0, le=1_000_000, description="Only lines after this step.")


class ListRunsArguments(Frozen):
    state: RunState | None = Field(None, description="Only runs in this state.")
    session_id: str | None = Field(None, max_length=128, description="Only runs of this session.")
    limit: int = Field(10, ge=1, le=20, description="Most runs returned, newest first.")
    cursor: str | None = Field(None, max_length=200, description="next_cursor of the answer before, for the rest.")


class StopArguments(RunArguments):
    timeout_seconds: Seconds = Field(10.0, description="Longest wait for the clean end; the stop itself goes on.")


class ResumeArguments(RunArguments):
    num_training_steps: int | None = Field(
        None, ge=1, le=1_000_000, description="New total of steps, to train longer than first asked."
    )
    max_budget_usd: float | None = Field(
        None, ge=0.0, le=1e6, description="New budget of the run; needs confirmed when it is larger."
    )
    confirmed: bool = Field(False, description="The user agreed to the larger budget.")
    from_step: int | None = Field(
        None, ge=0, description="Go on from the checkpoint of this step; later ones, a damaged one too, are given up."
    )
    accept_changes: bool = Field(
        False, description="The user wants to go on though prompts, models or adapter were changed since."
    )
