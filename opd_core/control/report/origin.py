"""Sections about where a run comes from: what was asked, what it was made of, what happened to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd_core.control.evidence import RunEvidence
from opd_core.control.report.content import Facts, Paragraph, Section, Table
from opd_core.control.report.provenance import (
    FileHash,
    checkpoint_records,
    hash_adapter,
    hash_file,
    hash_model,
    versions,
)
from opd_core.paths import HomePaths
from opd_core.types import clean_text

VALUE_CHARACTERS = 2_000
MAX_EVENTS = 60


def asked_and_resolved(evidence: RunEvidence) -> Section:
    """Every field of the resolved configuration that is set."""
    row = evidence.row
    times = [("created", row.created_at), ("started", row.started_at), ("finished", row.finished_at)]
    facts = [("run", row.run_id), ("state", _state(evidence)), *((name, at) for name, at in times if at)]
    facts += [("session", row.session_id)] if row.session_id else []
    config = [(name, _value(value)) for name, value in evidence.config.items() if value not in (None, [], {}, ())]
    return Section(
        "What was asked and resolved",
        (Facts(tuple(_cleaned(facts))), Paragraph("The resolved configuration:"), Facts(tuple(_cleaned(config)))),
    )


def _state(evidence: RunEvidence) -> str:
    row = evidence.row
    reason = f" ({row.end_reason})" if row.end_reason else ""
    return f"{row.state}{reason}, step {row.step} of {row.total_steps}"


def provenance(evidence: RunEvidence, home: HomePaths) -> Section:
    """Hashes of base, adapters and prompt files as they are now, and what the checkpoint recorded."""
    config, row = evidence.config, evidence.row
    folder = home.checkpoint_folder(row.run_id, config.get("checkpoint_dir"))
    manifest, state = checkpoint_records(folder, row.best_step)
    rows = _hash_rows("base model", config.get("base_model_path"), hash_model)
    rows += _hash_rows("incoming adapter", config.get("student_adapter_path"), hash_adapter)
    rows += _hash_rows("distilled adapter", row.final_adapter_path, hash_adapter, manifest)
    rows += [
        _hash_row(name.removesuffix("_path").replace("_", " "), hash_file(Path(config[name])), {})
        for name in ("prompts_path", "validation_prompts_path")
        if config.get(name)
    ]
    teacher = f"{config.get('teacher_kind')}: {config.get('teacher_model_id') or 'the base model with its own context'}"
    facts = [("teacher", teacher), *versions(state).items()]
    return Section(
        "Provenance",
        (
            Paragraph("Hashes were taken when this report was written."),
            Table(("what", "file", "bytes", "sha256", "note"), tuple(rows)),
            Facts(tuple(_cleaned(facts))),
        ),
    )


def _hash_rows(
    what: str,
    folder: str | None,
    hash_files: Callable[[Path], list[FileHash]],
    manifest: Mapping[str, Any] | None = None,
) -> list[tuple[str, ...]]:
    return [] if folder is None else [_hash_row(what, entry, manifest or {}) for entry in hash_files(Path(folder))]


def _hash_row(what: str, entry: FileHash, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    recorded, note = manifest.get(entry.name), entry.note
    if isinstance(recorded, Mapping) and entry.sha256 is not None:
        same = recorded.get("sha256") == entry.sha256
        note = "as the best checkpoint's manifest says" if same else "DIFFERS from the best checkpoint's manifest"
    size = "unknown" if entry.bytes is None else f"{entry.bytes:,}"
    return (what, clean_text(entry.name, 120), size, entry.sha256 or "none", note)


def history(evidence: RunEvidence) -> Section:
    """The newest of the events that were gathered."""
    shown = evidence.events[-MAX_EVENTS:]
    rows = tuple((event.at, event.kind, clean_text(event.message, 500)) for event in shown)
    return Section("What happened", (Table(("at", "kind", "what"), rows) if rows else Paragraph("Nothing yet."),))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cleaned(rows: Sequence[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(name, clean_text(str(value), VALUE_CHARACTERS)) for name, value in rows]
