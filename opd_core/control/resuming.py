"""What a resume may change in a run, and why some runs cannot be resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from opd_core.checkpoint_files import chosen_checkpoint, newest_sound_checkpoint, read_state, set_aside_after
from opd_core.config import RunConfig, parse_config
from opd_core.errors import CheckpointError, ConfigError
from opd_core.run_inputs import accept_changes, changed_prompts_warning, fingerprint_inputs, refuse_changes
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
    if row.state == "stopping":
        return f"{row.run_id} is stopping. Wait until get_status says that it is stopped, then resume it."
    return (
        f"{row.run_id} is {row.state} already; perhaps another call resumed it a moment ago. Follow it with get_status."
    )


def refuse_changes_of_a_comparison(
    row: RunRow, num_training_steps: int | None, max_budget_usd: float | None, from_step: int | None
) -> None:
    """A comparison goes on as it was asked for; another one is as cheap.

    Raises:
        ConfigError: something is to be changed.
    """
    if from_step is not None:
        raise ConfigError(
            f"{row.run_id} is a {row.kind} and has no checkpoints; leave from_step out.", field="from_step"
        )
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


def prepare_checkpoints(
    folder: Path, config: RunConfig, from_step: int | None, accepts_changes: bool
) -> Callable[[], None]:
    """Check that a run can go on from its newest checkpoint, or that of `from_step`, with its inputs as they are now.

    Returns:
        What makes it so: sets later checkpoints aside and notes accepted changes. To be done inside the transaction
        that queues the run, when no worker has it.

    Raises:
        CheckpointError: the checkpoint is damaged or missing, or its run had other inputs; says what to do.
    """
    try:
        chosen = newest_sound_checkpoint(folder) if from_step is None else chosen_checkpoint(folder, from_step)
    except OSError as error:
        raise CheckpointError(f"The checkpoints in {folder} cannot be read: {error}.") from error
    if chosen is None:
        return lambda: None
    state, now = read_state(chosen), fingerprint_inputs(config)
    refuse_changes(state, config, now, now if accepts_changes else {})

    def prepare() -> None:
        if from_step is not None:
            set_aside_after(folder, from_step)
        if accepts_changes:
            accept_changes(state, now, folder)

    return prepare


def prompts_warnings(folder: Path, config: RunConfig) -> list[str]:
    """What to say when a run's prompt files were edited after it; nothing while its checkpoint cannot be read."""
    try:
        newest = newest_sound_checkpoint(folder)
        state = {} if newest is None else read_state(newest)
        warning = changed_prompts_warning(state, config, fingerprint_inputs(config))
    except (CheckpointError, OSError):
        return []
    return [] if warning is None else [warning]
