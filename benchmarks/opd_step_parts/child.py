"""`python -m benchmarks.opd_step_parts.child NAME DEVICE [WORK.json]`: an MLX contestant in a process of its own.

The fast BLAS is loaded first of all, as the worker does it (`opd_core/worker/jobs.py`); only then MLX.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.opd_step_parts.pipe import Pipe, serve
from benchmarks.opd_step_parts.works import read_work
from opd_core import blas

MODULES = {"ours": "benchmarks.opd_step_parts.ours", "mlx-lm loop": "benchmarks.peers.mlx_loop"}


def main() -> None:
    """Load, say so, answer."""
    pipe = Pipe()
    found = blas.load_fast_blas()
    print(f"BLAS: {found.source} ({found.reason})", flush=True)
    name, device, *files = sys.argv[1:]
    if device == "cpu":  # elsewhere MLX takes the GPU by itself
        mx = importlib.import_module("mlx.core")
        mx.set_default_device(mx.cpu)
    if name == "floor":
        machine = importlib.import_module("benchmarks.opd_step_parts.machine")
        pipe.send(machine.measure())
        return
    module = importlib.import_module(MODULES[name])
    serve(pipe, module.Contestant(read_work(Path(files[0]))))


if __name__ == "__main__":
    main()
