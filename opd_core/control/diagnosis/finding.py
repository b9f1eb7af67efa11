"""What a diagnosis says: findings with the figures behind them, and changes in fields of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["stops", "harms", "limits", "note"]
"""stops: the run cannot go on like this; harms: it makes the model worse; limits: it keeps it from getting better or
from being judged; note: worth knowing."""
ORDER: tuple[Severity, ...] = ("stops", "harms", "limits", "note")


@dataclass(frozen=True)
class Suggestion:
    """One change: what to do in words, the configuration fields with their values, and why."""

    change: str
    why: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """What one rule found; `evidence` holds the figures that made it speak."""

    name: str
    severity: Severity
    sentence: str
    evidence: tuple[str, ...]
    suggestions: tuple[Suggestion, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """`verdict` is the name of the gravest finding, `healthy`, or `too_early`; `summary` says it in a sentence."""

    verdict: str
    summary: str
    findings: tuple[Finding, ...]

    @property
    def suggestions(self) -> tuple[Suggestion, ...]:
        """Of all findings, gravest first, each change once."""
        seen: dict[str, Suggestion] = {}
        for finding in self.findings:
            for suggestion in finding.suggestions:
                seen.setdefault(suggestion.change, suggestion)
        return tuple(seen.values())
