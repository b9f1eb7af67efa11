"""Metrics of a run: what each name means, and a bounded history of them in SQLite.

The complete history is the JSONL file. Here a series keeps every `stride`-th line and the last one; when more than
MAX_POINTS lines would be kept, the stride doubles. So a long history costs a reader no more than a short one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from opd_core.state.database import Database
from opd_core.state.jsonl import dump_line

Series = Literal["train", "eval"]
Item = TypeVar("Item")
Direction = Literal["up", "down", "neither"]
MAX_POINTS = 512


@dataclass(frozen=True)
class Metric:
    """What a metric's value is: its unit, the direction that is better, and one line of meaning."""

    unit: str
    direction: Direction
    meaning: str


METRICS: dict[str, Metric] = {
    "step": Metric("step", "neither", "optimizer updates done"),
    "total_steps": Metric("step", "neither", "optimizer updates this run was asked for"),
    "kl_loss": Metric("nats/token", "down", "divergence term of the loss, before its weight"),
    "sft_loss": Metric("nats/token", "down", "negative log-likelihood term of the loss, before its weight"),
    "total_loss": Metric("nats/token", "down", "what the optimizer minimised in this step"),
    "kl_weight": Metric("factor", "neither", "weight of the divergence term after its schedule"),
    "kl_divergence_mean": Metric("nats/token", "down", "reverse KL to the teacher on this step's rollouts, mean"),
    "kl_divergence_max": Metric("nats/token", "down", "the same, largest over this step's tokens"),
    "kl_divergence_min": Metric("nats/token", "down", "the same, smallest over this step's tokens"),
    "kl_divergence_std": Metric("nats/token", "down", "the same, standard deviation over this step's tokens"),
    "student_entropy": Metric("nats/token", "neither", "entropy of the student; near 0 it has stopped exploring"),
    "perplexity": Metric("ratio", "down", "exp of the student's mean surprise at its own tokens"),
    "teacher_alignment_pct": Metric("%", "up", "tokens where student and teacher have the same first choice"),
    "learning_rate": Metric("factor", "neither", "learning rate of this step, warm-up included"),
    "gradient_norm": Metric("norm", "neither", "global gradient norm before clipping"),
    "completion_tokens": Metric("tokens", "neither", "completion tokens of this step's rollouts"),
    "completion_tokens_mean": Metric("tokens", "neither", "rollout length: completion tokens of one rollout, mean"),
    "truncation_rate": Metric("fraction", "down", "completions cut off at rollout_max_tokens"),
    "repetition_rate": Metric("fraction", "down", "repeated n-grams within completions"),
    "samples_processed": Metric("rollouts", "neither", "rollouts used since the run began"),
    "tokens_per_second": Metric("tokens/s", "up", "completion tokens over step_seconds"),
    "rollout_tokens_per_second": Metric("tokens/s", "up", "completion tokens over the time spent writing them"),
    "teacher_tokens_per_second": Metric("tokens/s", "up", "completion tokens over the teacher's time"),
    "update_tokens_per_second": Metric("tokens/s", "up", "completion tokens over the time of the update"),
    "step_seconds": Metric("s", "down", "rollout, teacher and update together"),
    "rollout_seconds": Metric("s", "down", "time the student spent writing"),
    "teacher_seconds": Metric("s", "down", "time the teacher spent scoring"),
    "update_seconds": Metric("s", "down", "time of losses, gradients and the optimizer"),
    "other_seconds": Metric("s", "down", "the rest of the step: files, database, waiting for room"),
    "eval_seconds": Metric("s", "down", "time of this held-out evaluation"),
    "peak_memory_gb": Metric("GB", "down", "most memory MLX held at one time so far"),
    "update_skipped": Metric("flag", "neither", "the weights stayed: nothing to learn from, or a loss not finite"),
    "anchor_kl": Metric("nats/token", "neither", "coach: divergence from the unguided student the run began with"),
    "rollouts_without_guidance": Metric("rollouts", "neither", "coach: rollouts left out, right already or unguided"),
    "dpo_loss": Metric("nats", "down", "contrast: DPO term of the loss, mean over the pairs compared"),
    "reward_margin": Metric("nats", "up", "contrast: beta × how far the teacher's answer moved above the student's"),
    "chosen_logprob": Metric("nats/token", "up", "contrast: log-probability of the teacher's answers; must not fall"),
    "rejected_logprob": Metric("nats/token", "neither", "contrast: the same of the student's own answers"),
    "pairs_compared": Metric("pairs", "neither", "contrast: pairs in the DPO term"),
    "pairs_equal": Metric("pairs", "neither", "contrast: pairs not compared, the student's answer being as good"),
    "pairs_length_filtered": Metric("pairs", "neither", "contrast: pairs not compared for their lengths"),
    "pairs_without_reference": Metric("rollouts", "neither", "contrast: rollouts without a usable reference"),
    "targets_own": Metric("rollouts", "neither", "sft: targets that are the student's own right answer"),
    "targets_edit": Metric("rollouts", "neither", "sft: targets that are the teacher's minimal edit"),
    "targets_reference": Metric("rollouts", "neither", "sft: targets that are the teacher's reference"),
    "method": Metric("name", "neither", "the method the run trains with; auto has chosen it"),
    "guidance_level": Metric("name", "neither", "what guides the student in method coach"),
    "teacher_api_calls": Metric("calls", "down", "calls to a remote teacher since the run began"),
    "teacher_cache_hits": Metric("replies", "up", "teacher replies taken from the cache since the run began"),
    "teacher_unusable_replies": Metric("replies", "down", "replies refused, cut off or malformed since the run began"),
    "teacher_api_latency_ms": Metric("ms", "down", "mean time of a remote teacher call in this step"),
    "cumulative_cost_usd": Metric("USD", "down", "spent on teachers since the run began"),
    "checkpoint_path": Metric("path", "neither", "checkpoint written at this step"),
    "is_best": Metric("flag", "neither", "the primary metric was better than at every earlier evaluation"),
    "held_out_prompts": Metric("prompts", "neither", "held-out prompts in this evaluation"),
    "task_score": Metric("fraction", "up", "held-out answers that pass the check, mean score"),
    "reverse_kl": Metric("nats/token", "down", "held-out reverse KL from student to teacher"),
    "teacher_agreement_pct": Metric("%", "up", "held-out tokens where both have the same first choice"),
    "primary_metric": Metric("name", "neither", "the metric that picks the best adapter"),
    "best_step": Metric("step", "neither", "step of the best evaluation so far"),
    "best_value": Metric("as the primary metric", "neither", "the primary metric at best_step"),
    "reference_nll": Metric("nats/token", "down", "held-out negative log-likelihood of the references"),
}
"""Every name a metrics line may have."""


def append_point(connection: sqlite3.Connection, run_id: str, series: Series, line: Mapping[str, Any]) -> None:
    """Add the newest line (it has "step") inside the caller's transaction; keeps the series bounded."""
    record = connection.execute(
        "SELECT stride, next_ordinal FROM metric_series WHERE run_id = ? AND series = ?", (run_id, series)
    ).fetchone()
    stride, ordinal = (record["stride"], record["next_ordinal"]) if record else (1, 0)
    key = (run_id, series)
    # The line that was last so far stays only if it is on the stride.
    connection.execute(
        "DELETE FROM metric_points WHERE run_id = ? AND series = ? AND ordinal = ? AND ordinal % ? != 0",
        (*key, ordinal - 1, stride),
    )
    if ordinal // stride + 2 > MAX_POINTS:  # those on the stride, and the last one
        stride *= 2
        connection.execute(
            "DELETE FROM metric_points WHERE run_id = ? AND series = ? AND ordinal % ? != 0", (*key, stride)
        )
    connection.execute(
        "INSERT INTO metric_series VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET stride = excluded.stride, next_ordinal = excluded.next_ordinal",
        (*key, stride, ordinal + 1),
    )
    connection.execute(
        "INSERT INTO metric_points VALUES (?, ?, ?, ?, ?)", (*key, ordinal, line["step"], dump_line(line))
    )


def cut_points(
    connection: sqlite3.Connection, run_id: str, series: Series, last_line: Mapping[str, Any] | None
) -> None:
    """Forget every line after `last_line` (the last one of the cut file; None: it is empty)."""
    key = (run_id, series)
    last_step = -1 if last_line is None else last_line["step"]
    connection.execute("DELETE FROM metric_points WHERE run_id = ? AND series = ? AND step > ?", (*key, last_step))
    newest = connection.execute(
        "SELECT ordinal, step FROM metric_points WHERE run_id = ? AND series = ? ORDER BY ordinal DESC LIMIT 1", key
    ).fetchone()
    # The exact count of lines is no longer known; the newest kept ordinal keeps the spacing nearly even.
    connection.execute(
        "UPDATE metric_series SET next_ordinal = ?, stride = CASE WHEN ? THEN stride ELSE 1 END "
        "WHERE run_id = ? AND series = ?",
        (newest["ordinal"] + 1 if newest else 0, newest is not None, *key),
    )
    if last_line is not None and (newest is None or newest["step"] < last_step):
        append_point(connection, run_id, series, last_line)


def read_points(
    database: Database, run_id: str, series: Series, since_step: int | None = None, points: int = MAX_POINTS
) -> list[dict[str, Any]]:
    """Up to `points` lines with a step above `since_step`, evenly spread, first and last included."""
    records = database.read(
        "SELECT line FROM metric_points WHERE run_id = ? AND series = ? AND step > ? ORDER BY ordinal",
        (run_id, series, -1 if since_step is None else since_step),
    )
    return [json.loads(record["line"]) for record in thin(records, points)]


def thin(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, evenly spread; the last is always among them, the first when `most` > 1."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]
