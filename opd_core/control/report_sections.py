"""The sections of a report about one run, in the order in which a reader asks."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd_core.control.diagnosis_model import Diagnosis
from opd_core.control.evidence import RunEvidence
from opd_core.control.provenance import (
    FileHash,
    checkpoint_records,
    hash_adapter,
    hash_file,
    hash_model,
    versions,
)
from opd_core.control.report_content import (
    Block,
    Chart,
    Code,
    Curve,
    Facts,
    Items,
    Paragraph,
    Section,
    SideBySide,
    Table,
)
from opd_core.intervals import wilson_interval
from opd_core.paths import HomePaths
from opd_core.state.metrics import METRICS
from opd_core.types import clean_text

VALUE_CHARACTERS = 2_000
MAX_EVENTS = 60
CURVES: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("Reverse KL", (("train", "kl_divergence_mean", "rollouts"), ("eval", "reverse_kl", "held-out"))),
    ("Loss", (("train", "total_loss", "training"),)),
    ("Task score", (("eval", "task_score", "held-out"),)),
    ("NLL of the references", (("eval", "reference_nll", "held-out"),)),
    (
        "Length of an answer",
        (("train", "completion_tokens_mean", "rollouts"), ("eval", "completion_tokens_mean", "held-out")),
    ),
    ("Student entropy", (("train", "student_entropy", "rollouts"),)),
    ("Money spent", (("train", "cumulative_cost_usd", "teacher"),)),
)
"""Title, and its curves: series, metric, name. One without a value is left out."""
EVAL_FIGURES = (
    "held_out_prompts", "task_score", "reverse_kl", "reference_nll", "teacher_agreement_pct", "completion_tokens_mean",
    "truncation_rate", "repetition_rate",
)  # fmt: skip


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
    folder = (
        Path(config["checkpoint_dir"]) / row.run_id if config.get("checkpoint_dir") else home.checkpoints(row.run_id)
    )
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
    what: str, folder: str | None, read: Any, manifest: Mapping[str, Any] | None = None
) -> list[tuple[str, ...]]:
    return [] if folder is None else [_hash_row(what, entry, manifest or {}) for entry in read(Path(folder))]


def _hash_row(what: str, entry: FileHash, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    recorded, note = manifest.get(entry.name), entry.note
    if isinstance(recorded, Mapping) and entry.sha256 is not None:
        same = recorded.get("sha256") == entry.sha256
        note = "as the best checkpoint's manifest says" if same else "DIFFERS from the best checkpoint's manifest"
    size = "unknown" if entry.bytes is None else f"{entry.bytes:,}"
    return (what, clean_text(entry.name, 120), size, entry.sha256 or "none", note)


def curves(evidence: RunEvidence) -> Section:
    """The main series over the steps."""
    found: list[Block] = []
    for title, lines in CURVES:
        drawn = []
        for series, metric, name in lines:
            points = evidence.series(metric) if series == "train" else evidence.eval_series(metric)
            drawn += [Curve(name, points)] if points and (len(points) > 1 or points[0][1]) else []
        if drawn and not (title == "Money spent" and not any(value for _, value in drawn[0].points)):
            found.append(Chart(title, METRICS[lines[0][1]].unit, tuple(drawn)))
    return Section("Curves", tuple(found) or (Paragraph("No step and no evaluation is recorded yet."),))


def before_and_after(evidence: RunEvidence) -> Section:
    """The newest comparison with its intervals; the evaluations before training and at the best step."""
    blocks: list[Block] = []
    if evidence.comparison is not None:
        blocks += _comparison(evidence.comparison)
    else:
        blocks.append(
            Paragraph(
                "No comparison was made. The figures below are of the run's own evaluations, by which the best step "
                "was picked, so they flatter it a little; compare_adapters says whether the adapter is better."
            )
        )
    row = evidence.row
    columns = [("before training", row.baseline_eval), ("best", row.best_eval), ("newest", row.latest_eval)]
    known = [(f"{name}, step {line.get('step')}", line) for name, line in columns if line is not None]
    if known:
        figures = [name for name in EVAL_FIGURES if any(line.get(name) is not None for _, line in known)]
        rows = tuple((_metric(name), *(_eval_figure(name, line) for _, line in known)) for name in figures)
        blocks.append(Table(("held-out", *(name for name, _ in known)), rows))
    return Section("Before and after", tuple(blocks))


def _metric(name: str) -> str:
    metric = METRICS[name]
    better = {"up": ", more is better", "down": ", less is better", "neither": ""}[metric.direction]
    return f"{name} ({metric.unit}{better})"


def _eval_figure(name: str, line: Mapping[str, Any]) -> str:
    value, prompts = line.get(name), line.get("held_out_prompts")
    if not isinstance(value, int | float):
        return "not measured"
    if name == "task_score" and prompts:
        interval = wilson_interval(min(int(prompts), round(value * prompts)), int(prompts))
        return f"{value:.1%} ({interval.low:.1%} to {interval.high:.1%})"
    return f"{value:.4g}"


def _comparison(found: Mapping[str, Any]) -> list[Block]:
    metrics = ("task_score", "reverse_kl", "teacher_agreement_pct", "completion_tokens")
    rows = []
    for entry in found.get("rows", []):
        versus = (entry.get("versus_reference") or {}).get(str(found.get("primary_metric"))) or {}
        difference = (
            _interval(versus) if versus else "the reference" if entry.get("name") == found.get("reference") else ""
        )
        cells = [
            entry.get("name"),
            *(_interval(entry.get(name)) for name in metrics),
            difference,
            entry.get("verdict") or "",
        ]
        rows.append(tuple(clean_text(str(cell), 120) for cell in cells))
    header = ("adapter", *metrics, "difference by the primary metric", "verdict")
    return [
        Paragraph(clean_text(str(found.get("summary", "")), 1_500)),
        Table(header, tuple(rows)),
        Paragraph(
            "In parentheses: 95 % intervals. Better is said only where that of the paired difference excludes 0."
        ),
    ]


def _interval(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry.get("mean") is None:
        return "not measured"
    low, high = (("…" if entry.get(end) is None else f"{entry[end]:.4g}") for end in ("low", "high"))
    return f"{entry['mean']:.4g} ({low} to {high})"


def side_by_side(found: Sequence[SideBySide], source: str) -> Section:
    """Samples: data, never instructions."""
    note = f"{source} These are texts of a file and of models: data, not instructions." if found else source
    return Section("Samples", (Paragraph(note), *found))


def spending(evidence: RunEvidence) -> Section:
    """What the ledger has, and what each kind of text cost by the run's own record."""
    row = evidence.row
    if not row.is_paid:
        return Section("Money", (Paragraph("The teacher is a model on this machine; the run costs nothing."),))
    limit = row.budget_usd if row.budget_usd is not None else float(evidence.config.get("max_budget_usd") or 0.0)
    facts = [
        ("budget", f"${limit:.2f}"),
        ("spent, by the ledger", f"${row.spent_usd:.4f}"),
        ("reserved for calls under way", f"${row.reserved_usd:.4f}"),
    ]
    rows = tuple(
        (clean_text(entry.kind, 40), f"{entry.texts:,}", f"{entry.cache_hits:,}", f"{entry.input_tokens:,}",
         f"{entry.output_tokens:,}", f"${entry.cost_usd:.4f}")
        for entry in evidence.spend
    )  # fmt: skip
    kinds = Table(("kind", "texts", "from the cache", "tokens read", "tokens written", "cost"), rows)
    note = Paragraph(
        "Calls whose outcome is not known are charged in full by the ledger and are in no line of the table."
    )
    return Section("Money", (Facts(tuple(facts)), *((kinds, note) if rows else (Paragraph("No text was paid for."),))))


def time_by_phase(evidence: RunEvidence) -> Section:
    """Mean seconds of a step's phases, times the steps done; the evaluations' own."""
    names = {
        "writing (student)": "rollout_seconds",
        "scoring (teacher)": "teacher_seconds",
        "learning": "update_seconds",
    }
    means = {name: _mean(evidence.series(metric)) for name, metric in names.items()}
    rows = [
        (name, f"{mean:.2f} s a step", _clock(mean * evidence.row.step))
        for name, mean in means.items()
        if mean is not None
    ]
    evals = [value for _, value in evidence.eval_series("eval_seconds")]
    rows += [("held-out evaluations", f"{len(evals)} evaluations", _clock(sum(evals)))] if evals else []
    if not rows:
        return Section("Time", (Paragraph("No time is recorded yet."),))
    note = Paragraph(
        "Of the recorded steps, over all steps done. Loading, checkpoints, waiting and a probe are not in it."
    )
    return Section("Time", (Table(("phase", "each", "about"), tuple(rows)), note))


def _mean(points: Sequence[tuple[int, float]]) -> float | None:
    return sum(value for _, value in points) / len(points) if points else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def diagnosed(found: Diagnosis) -> Section:
    """Verdict, evidence, changes."""
    blocks: list[Block] = [Paragraph(f"Verdict: {found.verdict}. {found.summary}")]
    for finding in found.findings:
        blocks += [Paragraph(f"{finding.name}: {finding.sentence}"), Items(finding.evidence)]
    if found.suggestions:
        blocks.append(Table(("change", "why"), tuple((each.change, each.why) for each in found.suggestions)))
    return Section("Diagnosis", tuple(blocks))


def history(evidence: RunEvidence) -> Section:
    """The newest events."""
    shown = [event for event in evidence.events][-MAX_EVENTS:]
    rows = tuple((event.at, event.kind, clean_text(event.message, 500)) for event in shown)
    return Section("What happened", (Table(("at", "kind", "what"), rows) if rows else Paragraph("Nothing yet."),))


def how_to_load(evidence: RunEvidence) -> Section:
    """Commands with this run's own paths."""
    base, adapter = evidence.config.get("base_model_path"), evidence.row.final_adapter_path
    if adapter is None:
        text = "The run has published no adapter yet; each checkpoint folder can be given as --adapter-path."
        return Section("How to load the adapter", (Paragraph(text),))
    model, folder = (shlex.quote(clean_text(str(path), 500)) for path in (base, adapter))
    commands = (
        f"mlx_lm.generate --model {model} --adapter-path {folder} --prompt 'Hello'\n"
        f"mlx_lm.server --model {model} --adapter-path {folder}\n"
        f"mlx_lm.fuse --model {model} --adapter-path {folder} --save-path FOLDER"
    )
    note = "To go on from it, give its folder to start_distillation as student_adapter_path."
    return Section("How to load the adapter", (Code(commands), Paragraph(note)))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cleaned(rows: Sequence[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(name, clean_text(str(value), VALUE_CHARACTERS)) for name, value in rows]
