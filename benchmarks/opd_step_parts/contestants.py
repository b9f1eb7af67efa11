"""The parent's side: contestants as child processes that stay alive, and of which one works at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import peers_python
from opd_core import blas
from opd_core.allocator import allocator_environment

ROOT = Path(__file__).resolve().parents[2]
OURS, LOOP, TRL, TRL_BF16 = "ours", "mlx-lm loop", "TRL fp32", "TRL bf16"
BARE = "ours, no context"
"""Ours on the same work without the teacher's context."""
CHOICES = {"ours": OURS, "mlx": LOOP, "trl": TRL, "trl-bf16": TRL_BF16}
THREAD_NAMES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Child:
    """One contestant's process.

    Args:
        name: as in the table.
        device: cpu, cuda or metal.
        work: the work's file; None for the measurement of the machine.
        threads: of everybody but ours.
        log: where what it prints goes.
    """

    def __init__(self, name: str, device: str, work: Path | None, threads: int, log: Path) -> None:
        self.name, self._log = name, log
        command, environment = _command(name, device, threads, log.parent)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, *([str(work)] if work else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                cwd=ROOT,
                env=environment,
            )
        self.ready = self._answer()

    def ask(self, do: str) -> dict[str, Any]:
        """Have it do something, and wait for the figures."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        self._process.wait()
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"{self.name} ended with status {self._process.returncode}:\n{tail}")


def _command(name: str, device: str, threads: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """What starts a contestant, and its environment.

    Ours gets what the worker gets from its supervisor: the BLAS, the number of its threads and the allocator's settings
    are the engine's choice. The others use every thread there is; the plain loop gets the same BLAS.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if name in (TRL, TRL_BF16):
        environment["OMP_NUM_THREADS"] = str(threads)
        return [str(peers_python()), "-P", "-m", "benchmarks.peers.trl_distillation"], environment
    environment |= blas.worker_environment(folder / "lib")
    if name in (OURS, BARE):
        environment |= allocator_environment()
    else:
        environment |= dict.fromkeys(THREAD_NAMES, str(threads))
    known = OURS if name == BARE else name
    return [sys.executable, "-P", "-m", "benchmarks.opd_step_parts.child", known, device], environment


def forget_threads() -> None:
    """Whatever number of threads this process was started with, the contestants get their own."""
    for name in THREAD_NAMES:
        os.environ.pop(name, None)
