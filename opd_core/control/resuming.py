"""What a resume may change in a run, and why some runs cannot be resumed."""

from __future__ import annotations

from typing import Any

from opd_core.config import RunConfig, parse_config
from opd_core.errors import ConfigError
from opd_core.state.rows import RunRow


def why_not_resumable(row: RunRow) -> str:
    """The refusal for a run in a state that nothing resumes from, and what to do instead."""
    if row.state == "completed" and row.kind != "distillation":
        return f"{row.run_id} is a {row.kind} and completed; there is nothing to resume. Start another one."
    if row.state == "completed":
        return (
            f"Run {row.run_id} is completed. To train further, start a new run with student_adapter_path "
            f"{row.final_adapter_path or 'set to its adapter'}."
        )
    return f"Run {row.run_id} is {row.state}; only a stopped, failed or interrupted run can be resumed."


def refuse_changes_of_a_comparison(row: RunRow, num_training_steps: int | None, max_budget_usd: float | None) -> None:
    """A comparison goes on as it was asked for; another one is as cheap.

    Raises:
        ConfigError: something is to be changed.
    """
    if num_training_steps is None and max_budget_usd is None:
        return
    name = "max_budget_usd" if max_budget_usd is not None else "num_training_steps"
    raise ConfigError(
        f"{name} changes nothing in comparison {row.run_id}. For more judgements call compare_adapters again with a "
        "larger judge_budget_usd: those already paid for come from the cache and cost nothing.",
        field=name,
    )


def changed_config(row: RunRow, num_training_steps: int | None, max_budget_usd: float | None) -> RunConfig:
    """The run's configuration with what a resume may change: more steps, another budget.

    Raises:
        ConfigError: fewer steps than before.
    """
    changes: dict[str, Any] = {}
    steps = row.config["num_training_steps"]
    if num_training_steps is not None:
        if num_training_steps < steps:
            raise ConfigError(
                f"num_training_steps {num_training_steps} is less than the run's {steps}; a run is not made shorter. "
                "Leave it out, and end the run with stop_distillation at the step you want; or give more.",
                field="num_training_steps",
            )
        changes["num_training_steps"] = num_training_steps
    if max_budget_usd is not None:
        changes["max_budget_usd"] = float(max_budget_usd)
    return parse_config(row.config | changes)
