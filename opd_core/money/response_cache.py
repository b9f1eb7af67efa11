"""Replies that are paid for, shared by all runs of a home: never bought again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd_core.errors import LedgerDamagedError
from opd_core.state.database import Database


def request_key(
    base_url: str,
    api_version: str,
    model: str,
    params: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    template_version: str,
    sample_index: int,
) -> str:
    """The sha256 of everything that changes the reply, as canonical JSON. A change here buys every reply anew.

    Args:
        params: all other request parameters: system prompt, max_tokens, output_config, thinking …
        template_version: of the instructions that made the messages.
        sample_index: which of several answers to the same request, so that asking again gives another answer.

    Raises:
        ValueError: a parameter is not JSON data, or not finite.
    """
    parts = {
        "base_url": base_url,
        "api_version": api_version,
        "model": model,
        "params": params,
        "messages": messages,
        "template_version": template_version,
        "sample_index": sample_index,
    }
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


class ResponseCache:
    """The stored replies in the home's database. Only `Ledger.settle` adds one."""

    def __init__(self, database: Path | Database) -> None:
        self._database = Database.at(database)

    def get(self, key: str) -> str | None:
        """The reply's body as it was stored, or None when it has not been paid for.

        Raises:
            LedgerDamagedError: the body is not the one that was stored.
        """
        records = self._database.read("SELECT body, sha256 FROM responses WHERE request_key = ?", (key,))
        if not records:
            return None
        body = str(records[0]["body"])
        if hashlib.sha256(body.encode()).hexdigest() != records[0]["sha256"]:
            raise LedgerDamagedError(
                f"The stored reply to request {key[:12]} was changed after it was paid for, and is not used. A person "
                "must put back a copy of opd.db from before the change, or set OPD_HOME to a new folder."
            )
        return body
