"""A real worker process whose job follows orders from a test, sent through a named pipe; no MLX.

Run as a program it is the worker; `Orders` is the test's end of the pipe.
"""

from __future__ import annotations

import os
import resource
import select
import subprocess
import sys
from pathlib import Path

from opd_core import worker
from opd_core.errors import TrainingError
from opd_core.paths import HomePaths
from opd_core.worker.jobs import JobContext, JobEnd

ROOT = Path(__file__).parents[3]
MODULE = "tests.opd_core.control.scripted_worker"
COMMAND = (
    *(sys.executable, "-P", "-c"),
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {MODULE} import main; sys.exit(main())",
)


class Orders:
    """Tells one run's worker what to do next. Without a pipe a worker finishes at once."""

    def __init__(self, home: HomePaths, run_id: str) -> None:
        path = pipe(home, run_id)
        if not path.exists():
            os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDWR)

    def send(self, *orders: str) -> None:
        os.write(self._descriptor, "".join(f"{order}\n" for order in orders).encode())

    def close(self) -> None:
        os.close(self._descriptor)


def pipe(home: HomePaths, run_id: str) -> Path:
    return home.home / f"{run_id}.orders"


def obey(context: JobContext) -> JobEnd:
    """Follow orders until one of them ends the job: step, deaf, child, patience, eat, finish, fail, crash."""
    recorder, step, is_deaf = context.recorder, context.row.step, False
    recorder.phase("rollout")
    path = pipe(context.home, context.row.run_id)
    if not path.exists():
        return JobEnd("completed", "finished", "Nothing to do.")
    orders = os.open(path, os.O_RDWR)
    while True:
        readable, _, _ = select.select([orders], [], [], 0.01)
        if recorder.should_stop() and not is_deaf:
            return JobEnd("stopped", "by_user", f"Stopped after step {step}.")
        order = next_line(orders) if readable else ""
        if order == "step":
            step += 1
            recorder.train_metrics({"step": step, "kl_loss": 1.0 / step, "peak_memory_gb": 3.25})
        elif order == "deaf":
            is_deaf = True
            recorder.log("deaf now")
        elif order == "child":
            subprocess.Popen(["sleep", "1000"], close_fds=False)
            recorder.log("child started")
        elif order == "patience":
            (waits,) = context.store._database.read("PRAGMA busy_timeout")
            recorder.log(f"waits {waits[0]} ms for the database")
        elif order == "eat":
            recorder.log(f"ate {len(eat())} bytes")
        elif order == "finish":
            return JobEnd("completed", "finished", "As ordered.", final_adapter_path=Path("/adapters"))
        elif order == "fail":
            raise TrainingError("The loss was not finite.")
        elif order == "crash":
            raise ZeroDivisionError("by \x1b[31mzero")


def eat() -> bytes:
    """Ask for more memory than this process may have from now on."""
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
    return bytes(2**33)


def next_line(descriptor: int) -> str:
    text = b""
    while not text.endswith(b"\n"):
        text += os.read(descriptor, 1)
    return text.decode().strip()


def main() -> int:
    return worker.main(jobs={"distillation": obey, "comparison": obey, "probe": obey}, command=COMMAND)
