"""What a run would take, said before anything is spent: work, time, memory, disk. Every figure has its reason.

Time is measured where a past run of this home used a model of similar size, else guessed from the parameter count
and the machine's speed. Memory and disk are computed from the models' files.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Literal

from opd_core.adapter_files import changed_parameters
from opd_core.blas import core_count
from opd_core.config import RunConfig
from opd_core.control.estimate.costs import PaidEstimate
from opd_core.control.estimate.paid import estimate_paid
from opd_core.control.estimate.speed import Speed, measured_or_guessed_speed
from opd_core.control.machine import GB, free_disk_bytes, guess_device, read_memory
from opd_core.control.preflight.checking import Preflight, check
from opd_core.control.prompts.token_counts import CHARACTERS_PER_TOKEN
from opd_core.paths import HomePaths
from opd_core.prompt_files import PromptExample
from opd_core.roots import Roots
from opd_core.settings import Settings
from opd_core.state.store import RunStore

TEMPLATE_TOKENS = 20
MAX_UNKNOWN_LENGTH = 256
MAX_COPIED_BYTES = 2 * 1024**3  # training/decoding.py's bound on the weights' second layout while writing
GPU_TOKENS_PER_BATCH, CPU_TOKENS_PER_LANE = 4096, 512  # training/updates.py's bounds on a forward and backward pass
# Floats kept for the backward pass per token, layer and hidden unit: 2.6 GB at 1,536 tokens × 30 layers × 576.
ACTIVATIONS_PER_UNIT = 25
LOGIT_COPIES, LOGIT_POSITIONS = 18, 85
OPTIMIZER_COPIES = 4  # weight, gradient and Adam's two moments, float32
EVALUATION_SHARE = 0.6  # an evaluated token is written and scored, not learned from
BYTES_PER_COMPLETION_TOKEN, BYTES_PER_PROMPT_TOKEN = 24, 16


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    `completion_tokens` is what the student is expected to write in training, `completion_tokens_max` what it can write
    at most; `teacher_tokens` is what a local teacher, or the guided student, reads. `teacher_calls` counts expected
    calls to a paid teacher, `cost_usd` their expected price; `paid` says more about them. `basis` and `basis_sentence`
    are about the minutes, `notes` about the other figures.
    """

    steps: int
    rollouts: int
    teacher_calls: int
    completion_tokens: int
    completion_tokens_max: int
    evaluations: int
    teacher_tokens: int
    cost_usd: float
    minutes_low: float
    minutes_expected: float
    minutes_high: float
    basis: Literal["measured", "guess"]
    basis_sentence: str
    peak_memory_gb: float
    disk_gb: float
    train_prompts: int
    held_out_prompts: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    paid: PaidEstimate | None = None


@dataclass(frozen=True)
class _Work:
    """Token counts of a run; lengths are means."""

    rollouts: int
    completion_length: float
    prompt_length: float
    evaluations: int
    length_note: str


def estimate(config: RunConfig, store: RunStore | None, *, roots: Roots, settings: Settings) -> Estimate:
    """Check a configuration as a start would, then say what the run would take; writes nothing.

    Raises:
        OPDError: what `preflight.checking.check` refuses.
    """
    preflight = check(config, roots, settings, is_estimate=True)
    config = preflight.config
    work = _count_work(preflight)
    speed = measured_or_guessed_speed(preflight.base, store)
    minutes = _minutes(config, preflight, work, speed)
    memory, disk = _memory_bytes(preflight, work), _disk_bytes(preflight, work)
    paid = estimate_paid(preflight, settings, work.completion_length) if config.teacher_kind == "claude" else None
    return Estimate(
        steps=config.num_training_steps,
        rollouts=work.rollouts,
        teacher_calls=paid.chosen.calls if paid else 0,
        completion_tokens=round(work.rollouts * work.completion_length),
        completion_tokens_max=work.rollouts * config.rollout_max_tokens,
        evaluations=work.evaluations,
        teacher_tokens=round(work.rollouts * (work.completion_length + work.prompt_length)),
        cost_usd=paid.pays_usd if paid else 0.0,
        minutes_low=minutes[0],
        minutes_expected=minutes[1],
        minutes_high=minutes[2],
        basis=speed.basis,
        basis_sentence=speed.sentence,
        peak_memory_gb=memory / GB,
        disk_gb=disk / GB,
        train_prompts=preflight.train_count,
        held_out_prompts=preflight.held_out_count,
        notes=(*_notes(config, work), work.length_note, *(paid.notes if paid else ())),
        warnings=(*preflight.warnings, *_machine_warnings(settings.home, memory, disk)),
        paid=paid,
    )


def _count_work(preflight: Preflight) -> _Work:
    config = preflight.config
    length, note = completion_length(config, preflight.prompts.train)
    prompts = [_prompt_tokens(example) for example in preflight.prompts.train]
    return _Work(
        rollouts=config.num_training_steps * config.batch_size * config.num_rollouts_per_prompt,
        completion_length=length,
        prompt_length=statistics.fmean(prompts),
        evaluations=1 + math.ceil(config.num_training_steps / config.eval_every_steps),
        length_note=note,
    )


def completion_length(config: RunConfig, examples: list[PromptExample]) -> tuple[float, str]:
    """Expected tokens of a completion, its end token included, and where the number comes from."""
    limit = config.rollout_max_tokens
    known = [example.completion for example in config.teacher_examples]
    source = "the teacher's examples"
    if not known:
        known = [example.completion for example in examples if example.completion is not None]
        source = "the completions in the prompt file"
    if known:
        length = min(limit, 1 + statistics.fmean(map(len, known)) / CHARACTERS_PER_TOKEN * 1.3)
        return length, f"Completions are taken to be as long as {source}: about {length:.0f} tokens."
    length = max(1.0, min(limit / 2, MAX_UNKNOWN_LENGTH))
    return length, f"The length of completions is not known; {length:.0f} tokens each are assumed."


def _prompt_tokens(example: PromptExample) -> float:
    return TEMPLATE_TOKENS + sum(len(turn["content"]) for turn in example.messages) / CHARACTERS_PER_TOKEN


def _minutes(config: RunConfig, preflight: Preflight, work: _Work, speed: Speed) -> tuple[float, float, float]:
    """Low, expected and high; high lets every completion run to its limit."""
    share = work.rollouts + EVALUATION_SHARE * work.evaluations * preflight.held_out_count
    expected = share * work.completion_length * speed.seconds_per_token / 60
    longest = expected * config.rollout_max_tokens / work.completion_length
    return expected / speed.spread, expected, max(expected * speed.spread, longest)


def _memory_bytes(preflight: Preflight, work: _Work) -> float:
    config, base = preflight.config, preflight.base
    on_cpu = guess_device() == "cpu"
    models = [model for model in (base, preflight.teacher) if model is not None]
    weights = sum(4 * model.num_parameters if on_cpu else model.bytes for model in models)
    width = 4 if on_cpu else 2
    rows = config.batch_size * config.num_rollouts_per_prompt
    longest = work.prompt_length + config.rollout_max_tokens
    at_once = max(longest, CPU_TOKENS_PER_LANE) * core_count() if on_cpu else max(longest, GPU_TOKENS_PER_BATCH)
    tokens = min(rows * longest, at_once)
    activations = tokens * base.num_layers * base.hidden_size * ACTIVATIONS_PER_UNIT * width
    logits = max(LOGIT_POSITIONS, rows) * base.vocab_size * LOGIT_COPIES * 4
    copies = min(4 * base.num_parameters, MAX_COPIED_BYTES) if on_cpu else 0
    return weights + _adapter_bytes(preflight) * OPTIMIZER_COPIES + max(copies, activations + logits)


def _adapter_bytes(preflight: Preflight) -> int:
    """Size of the adapter in float32."""
    config = preflight.config
    return 4 * changed_parameters(preflight.base.path, config.lora_rank or 0, config.lora_keys)


def _disk_bytes(preflight: Preflight, work: _Work) -> float:
    config = preflight.config
    written = math.ceil(config.num_training_steps / config.checkpoint_every_steps) + 1
    kept = min(written, 3) if config.save_best_only else written
    checkpoints = _adapter_bytes(preflight) * (3 * kept + 1)  # with Adam's moments; the best one stands beside them
    records = work.rollouts + work.evaluations * preflight.held_out_count
    per_record = work.completion_length * BYTES_PER_COMPLETION_TOKEN + work.prompt_length * BYTES_PER_PROMPT_TOKEN + 400
    return checkpoints + records * per_record


def _notes(config: RunConfig, work: _Work) -> tuple[str, ...]:
    return (
        f"Rollouts: {config.num_training_steps} steps × {config.batch_size} prompts × "
        f"{config.num_rollouts_per_prompt} completions; {work.evaluations} held-out evaluations beside them.",
        *(
            ["The teacher is a model on this machine: no calls, no cost, one forward pass over every rollout."]
            if config.teacher_kind == "local"
            else []
        ),
        "Memory: weights, adapter with its optimizer, and the larger of two: activations of one training batch with a "
        "chunk of logits, or on a CPU the second layout of the weights for writing.",
        "Disk: the checkpoints that are kept, with their optimizer states, and the rollout records.",
    )


def _machine_warnings(home: HomePaths, memory_bytes: float, disk_bytes: float) -> list[str]:
    warnings = []
    available, free = read_memory().available_bytes, free_disk_bytes(home.home)
    if available is not None and memory_bytes > available:
        warnings.append(
            f"The run may need {memory_bytes / GB:.1f} GB of memory and {available / GB:.1f} GB are free; lower "
            "batch_size, num_rollouts_per_prompt or rollout_max_tokens."
        )
    if free is not None and disk_bytes > free:
        warnings.append(
            f"The run may write {disk_bytes / GB:.1f} GB and {free / GB:.1f} GB of disk are free; raise "
            "checkpoint_every_steps or set save_best_only."
        )
    return warnings
