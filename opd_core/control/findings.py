"""What the preflight found: every problem is kept until all checks have run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from opd_core.errors import ConfigError, OPDError

T = TypeVar("T")


@dataclass
class Findings:
    """Problems, warnings and decided values collected over all checks."""

    problems: list[OPDError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    decided: dict[str, Any] = field(default_factory=dict)

    def attempt(self, work: Callable[..., T], *arguments: Any) -> T | None:
        """The result of `work`, or `None` with its error kept."""
        try:
            return work(*arguments)
        except OPDError as error:
            self.problems.append(error)
            return None

    def refuse(self, message: str, field_name: str) -> None:
        """Keep a problem with a configuration value."""
        self.problems.append(ConfigError(message, field=field_name))


def one_error(problems: list[OPDError]) -> OPDError:
    """The single problem itself, else one error for all."""
    if len(problems) == 1:
        return problems[0]
    listed = " ".join(f"({number}) {problem}" for number, problem in enumerate(problems, start=1))
    return ConfigError(f"There are {len(problems)} problems; nothing was started. {listed}")
