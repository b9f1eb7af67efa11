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


class ConfirmationNeededError(ConfigError):
    """The user must agree before this may spend money. Nothing was started.

    Attributes:
        question: what to ask the user, to be answered with yes or no.
    """

    def __init__(self, question: str) -> None:
        super().__init__(
            f"{question} Ask the user; if they agree, call again with the same arguments and confirmed true. Nothing "
            "was started.",
            field="confirmed",
        )
        self.question = question


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


class BudgetExceededError(OPDError, RuntimeError):
    """A paid call was refused because its reservation does not fit into what is left of a budget.

    Attributes:
        scope: "run", or "month" for the limit of the whole install.
        left_pico: what could still be reserved, in picodollars (1e12 a dollar).
        needed_pico: what the call would have reserved.
    """

    def __init__(self, message: str, *, scope: str, left_pico: int, needed_pico: int) -> None:
        super().__init__(message, field="max_budget_usd" if scope == "run" else None)
        self.scope, self.left_pico, self.needed_pico = scope, left_pico, needed_pico


class BudgetFrozenError(OPDError, RuntimeError):
    """Paid calls are refused because an earlier one cost more than was reserved, or could not be priced."""


class DuplicateCallError(OPDError, RuntimeError):
    """The same request is open already, or its reply is paid for and stored."""


class UnknownPriceError(OPDError, LookupError):
    """There is no price for a model, a prompt length or a service option; such a call is never sent."""


class StalePricesError(OPDError, RuntimeError):
    """The price table is too old to spend money by."""


class BadUsageError(OPDError, ValueError):
    """A reply does not say in valid numbers what it cost; its call is charged in full."""


class LedgerDamagedError(OPDError, RuntimeError):
    """The ledger's totals do not follow from its calls, or its guards or stored replies were changed."""


class TeacherUnavailableError(OPDError, ConnectionError):
    """The teacher cannot be asked now.

    Attributes:
        wake_in_seconds: when asking again makes sense (the run may wait for it); None: not before a person acts.
    """

    def __init__(self, message: str, *, wake_in_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wake_in_seconds = wake_in_seconds


class TeacherCacheMissError(TeacherUnavailableError):
    """A reply is not in the cache and `teacher_cache_only` forbids to ask for it."""


class TeacherRefusedError(OPDError, RuntimeError):
    """The teacher's provider refuses to help with the training itself; the run stops and is not tried again."""


class TeacherStoppedError(OPDError, RuntimeError):
    """The run was asked to stop while it waited for the teacher; paid replies are kept."""
