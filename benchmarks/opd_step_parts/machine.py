"""What the machine can do at best, and what a step needs at least: the floor.

A step's floor, with T FLOP a token in the trunk (2 × its matrices' entries: 212 M in SmolLM2-135M), H in the head
(2 × vocabulary × width: 57 M), P prompt tokens (each prompt once, however many rollouts it gets), N new tokens in R
rows, the measured matrix-multiplication rate F and memory bandwidth M:

    rollout   (P·T + N·(T + H)) / F, and at least N / R passes over the weights, each weights / M
    teacher   ((P + N)·T + N·H) / F       its fixed context costs nothing: it can be read once a run
    update    ((P + N)·2T + N·2H) / F     forward, and backward through activations: frozen weights have no gradient

Attention over keys (4 % of the trunk at 200 tokens), the adapter, softmax and every other pass over memory are left
out, and everything overlaps perfectly: no step can be faster, and none gets there.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.opd_step_parts.making import weight_shapes
from benchmarks.opd_step_parts.works import Work

REPEATS = 20
COPY_BYTES = 256 * 1024 * 1024


def measure() -> dict[str, float]:
    """Rates of this machine's device, in FLOP/s (float32 on a CPU, else bfloat16) and bytes/s; best of several."""
    cpu = mx.default_device().type == mx.DeviceType.cpu
    width = 2048 if cpu else 8192
    left, right = (mx.random.normal((width, width)).astype(mx.float32 if cpu else mx.bfloat16) for _ in range(2))
    mx.eval(left, right)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        mx.eval(left @ right)
        seconds.append(time.perf_counter() - started)
    return {"flops": 2.0 * width**3 / min(seconds), "bandwidth": _copy_rate() if cpu else _device_copy_rate()}


def _copy_rate() -> float:
    """All cores copy at once; a byte copied is a byte read and a byte written."""
    count = os.cpu_count() or 1
    pairs = [(np.ones(COPY_BYTES // 8), np.empty(COPY_BYTES // 8)) for _ in range(count)]

    def work(pair: tuple[Any, Any]) -> None:
        for _ in range(REPEATS):
            np.copyto(pair[1], pair[0])

    for source, target in pairs:
        np.copyto(target, source)  # the pages exist before the clock starts
    threads = [threading.Thread(target=work, args=(pair,)) for pair in pairs]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 2.0 * COPY_BYTES * REPEATS * count / (time.perf_counter() - started)


def _device_copy_rate() -> float:
    source = mx.ones((COPY_BYTES,), dtype=mx.float32)
    mx.eval(source)
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        mx.eval(source + 1.0)
        best = min(best, time.perf_counter() - started)
    return 2.0 * source.nbytes / best


def floor_seconds(work: Work, rates: dict[str, float]) -> dict[str, float]:
    """The floor of each phase and of the step, by the formula above; `matmul` is the step's arithmetic alone."""
    trunk, head, weight_bytes = _costs(work)
    batch = work.batches[1]
    prompts = sum(len(prompt.ids) for prompt in batch)
    new = work.rows * work.new_tokens
    rate = rates["flops"]
    writing = max(new * (trunk + head) / rate, work.new_tokens * weight_bytes / rates["bandwidth"])
    floor = {
        "rollout": prompts * trunk / rate + writing,
        "teacher": ((prompts + new) * trunk + new * head) / rate,
        "update": 2.0 * ((prompts + new) * trunk + new * head) / rate,
    }
    matmul = 4.0 * ((prompts + new) * trunk + new * head) / rate
    return floor | {"step": sum(floor.values()), "matmul": matmul}


def _costs(work: Work) -> tuple[float, float, float]:
    """FLOP a token in the trunk, FLOP a token in the head, bytes of the weights."""
    shapes = weight_shapes(Path(work.model))
    trunk = sum(2.0 * rows * columns for name, (rows, columns) in _matrices(shapes) if ".layers." in name)
    head = next(shape for name, shape in shapes.items() if name.endswith(("embed_tokens.weight", "lm_head.weight")))
    width = 4 if work.dtype == "float32" else 2
    return trunk, 2.0 * head[0] * head[1], width * (trunk + 2.0 * head[0] * head[1]) / 2.0


def _matrices(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, tuple[int, int]]]:
    return [(name, (shape[0], shape[1])) for name, shape in shapes.items() if len(shape) == 2]
