"""The train and held-out prompts of one configuration: made here alone, so that check, run and comparison agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from opd_core.config import RunConfig
from opd_core.prompt_files import PromptExample, check_disjoint, load_prompts, split_prompts


@dataclass(frozen=True)
class RunPrompts:
    """Disjoint prompts; `held_out` has at most `eval_max_samples`; `notes` say what was dropped, for people."""

    train: list[PromptExample]
    held_out: list[PromptExample]
    notes: tuple[str, ...]


def load_run_prompts(config: RunConfig) -> RunPrompts:
    """Read the configuration's prompt files (paths already resolved), split a lone one, keep the two apart.

    Raises:
        PromptFileError: a file cannot be read, or there is nothing to train on or to hold out.
    """
    paths = [path for path in (config.prompts_path, config.validation_prompts_path) if path is not None]
    files = [load_prompts(Path(path)) for path in paths]
    duplicates = sum(file.duplicates_dropped for file in files)
    notes = [f"{duplicates} repeated prompts were dropped."] if duplicates else []
    if len(files) == 1:
        train, held_out = split_prompts(files[0].examples, config.seed, max_held_out=config.eval_max_samples)
    else:
        train, removed = check_disjoint(files[0].examples, files[1].examples)
        held_out = files[1].examples[: config.eval_max_samples]
        if removed:
            notes.append(f"{removed} training prompts were left out because they are also held out.")
    return RunPrompts(train, held_out, tuple(notes))
