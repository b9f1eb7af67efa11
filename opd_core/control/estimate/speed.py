"""How fast a run would go here: measured in past runs of this home, else guessed from size and hardware."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opd_core.blas import find_fast_blas
from opd_core.control.machine import BLAS_FACT, Device, guess_device
from opd_core.errors import ModelFileError
from opd_core.model_files import ModelInfo, read_model
from opd_core.state.store import RunStore

PAST_RUNS = 30
SIMILAR_SIZE = 4.0
# Operations per parameter and completion token of a whole step (rollout, teacher, update, its share of the prompts),
# from 25.7 s for 8 × 64 tokens of a 135M model at 200 GFLOP/s.
OPERATIONS_PER_PARAMETER = 75
# float32 products, GFLOP/s, where nothing was measured. Only the two CPU figures were ever seen on a machine.
TYPICAL_GFLOPS: dict[Device, float] = {"metal": 3000.0, "cuda": 20_000.0, "cpu": 150.0}
REFERENCE_BLAS_GFLOPS = 5.0


@dataclass(frozen=True)
class Speed:
    """Seconds a whole step takes per completion token; `spread` is the factor it may be off either way."""

    seconds_per_token: float
    basis: Literal["measured", "guess"]
    sentence: str
    spread: float


def measured_or_guessed_speed(base: ModelInfo, store: RunStore | None) -> Speed:
    """The speed to expect with a base model on this machine."""
    return _measured(base, store) or _guessed(base, store)


def _measured(base: ModelInfo, store: RunStore | None) -> Speed | None:
    """From the past run whose model is nearest in size, the newest of those; scaled by the number of parameters."""
    if store is None:
        return None
    best: tuple[float, str, float, float] | None = None  # distance in size, run, tokens a second, scale
    for row in store.list(limit=PAST_RUNS):
        parameters = _parameters(row.config.get("base_model_path")) if row.latest_metrics else 0
        if row.kind != "distillation" or not parameters:
            continue
        scale = base.num_parameters / parameters
        distance = abs(math.log(scale))
        if distance <= math.log(SIMILAR_SIZE) and (best is None or distance < best[0]):
            lines = store.metrics(row.run_id, "train")
            rates = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
            if rates:
                best = (distance, row.run_id, statistics.median(rates), scale)
    if best is None:
        return None
    _, run_id, rate, scale = best
    scaled = "" if math.isclose(scale, 1.0) else f", scaled by {scale:.2g} for the model's size"
    return Speed(
        seconds_per_token=scale / rate,
        basis="measured",
        sentence=f"The minutes are measured: run {run_id} on this machine made {rate:.3g} tokens a second{scaled}.",
        spread=1.5,
    )


def _parameters(base_model_path: object) -> int:
    """Parameters of a past run's base model; 0 when it is gone."""
    if not isinstance(base_model_path, str):
        return 0
    try:
        return read_model(Path(base_model_path)).num_parameters
    except (ModelFileError, OSError):
        return 0


def _guessed(base: ModelInfo, store: RunStore | None) -> Speed:
    device = guess_device()
    gflops, source = TYPICAL_GFLOPS[device], f"a typical {_device_name(device)}"
    report = store.get_fact(BLAS_FACT) if store else None
    if isinstance(report, dict) and isinstance(report.get("gflops"), int | float) and report["gflops"] > 0:
        gflops, source = float(report["gflops"]), "the speed check_setup measured"
    elif device == "cpu" and find_fast_blas().source == "reference":
        gflops, source = REFERENCE_BLAS_GFLOPS, "the slow reference BLAS found here"
    return Speed(
        seconds_per_token=OPERATIONS_PER_PARAMETER * base.num_parameters / (gflops * 1e9),
        basis="guess",
        sentence=(
            f"The minutes are a guess, good within a factor of 3: {base.num_parameters / 1e6:.0f} million parameters "
            f"at {gflops:.0f} GFLOP/s ({source}). After a first run here they are measured."
        ),
        spread=3.0,
    )


def _device_name(device: Device) -> str:
    """What a device is called in a sentence."""
    return {"metal": "Apple GPU", "cuda": "CUDA GPU", "cpu": "CPU with a fast BLAS"}[device]
