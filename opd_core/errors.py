"""Errors of the house: one base, one class per boundary a failure can cross.

Every message names the thing, its value, what is allowed and what to do next, in plain sentences: a tool
hands the text to an assistant as it is. Each class also inherits the builtin it refines, so that a caller
who knows only Python still catches it. `field` names the configuration field at fault, where there is one.
"""

from __future__ import annotations


class OPDError(Exception):
    """Base of every error this project raises on purpose."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ConfigError(OPDError, ValueError):
    """A configuration value is missing, unknown, of the wrong type or out of range."""


class PathError(OPDError, ValueError):
    """A path lies outside the allowed roots, does not exist or is of the wrong kind."""


class PromptFileError(OPDError, ValueError):
    """A prompt file cannot be read; names the file and the line."""


class ModelFileError(OPDError, ValueError):
    """A model or adapter folder is incomplete, unsafe or of an unsupported kind."""


class CompatibilityError(OPDError, ValueError):
    """Two parts do not fit each other: teacher and student tokenizer, adapter and base model."""


class CheckpointError(OPDError, ValueError):
    """A checkpoint is damaged, incomplete or belongs to another configuration."""


class StateError(OPDError, RuntimeError):
    """The requested change does not fit the run's present state."""


class RunNotFoundError(OPDError, LookupError):
    """No run or job has the given id."""


class HomeError(OPDError, OSError):
    """OPD_HOME cannot be created, read or written."""


class StoreError(OPDError, RuntimeError):
    """The run database is busy, damaged or of a newer version."""


class StaleWorkerError(OPDError, RuntimeError):
    """This worker no longer owns its run (its epoch has passed); it must exit at once."""


class TrainingError(OPDError, RuntimeError):
    """Training cannot go on: diverged, or nothing left to train on."""
