"""What the tools take that look into prompt files and into runs: inspect, read, plot, diagnose, report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from opd_core.config import Frozen
from server.arguments.runs import RunArguments

MAX_PLOTTED = 4
Path = Annotated[str, Field(min_length=1, max_length=4096)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def _split(value: object) -> object:
    """`a,b` as a query has it; a list stays one."""
    return tuple(value.split(",")) if isinstance(value, str) else value


Names = Annotated[tuple[Name, ...], Strict(False), Field(max_length=MAX_PLOTTED), BeforeValidator(_split)]


class InspectArguments(Frozen):
    prompts_path: Path | None = Field(None, description="Training prompts: a .jsonl or .txt file.")
    validation_prompts_path: Path | None = Field(
        None, description="Held-out prompts. With only one of the two files, it is split as a run would split it."
    )
    base_model_path: Path | None = Field(
        None, description="Model whose tokenizer counts the tokens; left out: they are estimated."
    )
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of the split, as of the run.")
    eval_max_samples: int = Field(100, ge=1, le=10_000, description="Most held-out prompts, as of the run.")
    rollout_max_tokens: int = Field(512, ge=1, le=32768, description="Longest answer, which must fit behind a prompt.")
    samples: int = Field(3, ge=0, le=10, description="Prompts shown, shortened.")

    @model_validator(mode="after")
    def _has_a_file(self) -> InspectArguments:
        if self.prompts_path is None and self.validation_prompts_path is None:
            raise ValueError("give prompts_path or validation_prompts_path: a .jsonl or .txt file of prompts")
        return self


class LogArguments(RunArguments):
    mode: Literal["summary", "tail", "grep"] = Field(
        "summary", description="summary: size, errors, last lines; tail: last lines; grep: lines with the pattern."
    )
    pattern: str | None = Field(None, min_length=1, max_length=500, description="For grep: a text in any case.")
    regex: bool = Field(False, description="The pattern is a regular expression.")
    lines: int = Field(40, ge=1, le=200, description="Most lines returned, the newest.")
    cursor: int | None = Field(
        None, ge=0, le=2**53, description="next_cursor of the answer before, for what stands earlier in the log."
    )


class PlotArguments(Frozen):
    run_ids: Names = Field((), description="One to four runs, each a line. Left out: the current run, else the latest.")
    keys: Names = Field(
        (),
        description="One to four metrics by the names of get_metrics, each a panel. Left out: those that tell most.",
    )
    series: Literal["train", "eval"] | None = Field(
        None, description="train: each step; eval: held-out evaluations. Left out: whichever has the metric."
    )


class DiagnoseArguments(RunArguments):
    """Nothing but the run."""


class ReportArguments(RunArguments):
    """Nothing but the run."""
