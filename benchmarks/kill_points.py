"""Kill a process at every write-class system call of a checkpoint's publication, and look at what is left.

The publication is the real one, as the trainer makes it: flush the run's files, write and rename the checkpoint, make
its adapter the best, prune, write the row. strace attaches when the process is ready for it and injects SIGKILL at the
k-th call of one name (its counter is one a name, so a set of names would never reach the rare ones), for every name
and every k that a peaceful publication makes. Without strace (or the right to trace) an audit hook inside the process
kills at every k-th opening, renaming, removing and flushing that Python does; bytes written by MLX are then one step.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from opd_core.checkpoint_files import checkpoint_step, list_checkpoints, remove_leftovers, verify_checkpoint
from opd_core.errors import CheckpointError, OPDError
from opd_core.paths import HomePaths
from opd_core.state.recorder import RunRecorder
from opd_core.state.store import RunStore
from opd_core.tensor_files import read_exact_header
from opd_core.training.checkpoint import load_checkpoint, prune_checkpoints, publish_best, save_checkpoint

CALLS = (
    "write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,open,openat,"
    "creat,chmod,fchmod,fchmodat,ftruncate,truncate,close,copy_file_range,sendfile,link,linkat"
)
EVENTS = frozenset({"open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "os.truncate"})
RUN_ID = "run"
NEVER = 1_000_000
How = Literal["strace", "audit hook"]


def publish(recorder: RunRecorder, home: HomePaths, step: int) -> None:
    """What the trainer does at a checkpoint that is the best so far, with a run that keeps few."""
    folder = home.checkpoints(RUN_ID)
    recorder.train_metrics({"step": step, "total_loss": 1.0 / step})
    state = {"memory": {"step": step}, "positions": recorder.positions()}
    adapter = {"layer.lora_a": mx.full((64, 8), float(step)), "layer.lora_b": mx.full((8, 64), float(step))}
    path = save_checkpoint(folder, step, adapter, {"fine_tune_type": "lora"}, {"step": mx.array(step)}, state)
    publish_best(folder, path)
    prune_checkpoints(folder, path)
    recorder.checkpoint(step, path, is_best=True)


def child(home: HomePaths, kill_at: int) -> None:
    """Three checkpoints in peace, then the one that is killed, once the parent says so."""
    store = RunStore(home.database)
    row = store.get(RUN_ID)
    recorder = RunRecorder(store, home, row, lambda: False)
    for step in (1, 2, 3):
        publish(recorder, home, step)
    print("ready", flush=True)
    sys.stdin.readline()
    left = _kill_at(kill_at) if kill_at else lambda: 0
    publish(recorder, home, 4)
    (home.home / "left").write_text(str(left()), encoding="utf-8")
    os._exit(0)


def _kill_at(kill_at: int) -> Callable[[], int]:
    """Count down to the kill; returns what tells how many calls are left."""
    left = kill_at

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if event in EVENTS:
            count()

    real = os.fsync

    def fsync(fd: Any) -> None:
        count()
        real(fd)

    os.fsync = fsync
    sys.addaudithook(hook)
    return lambda: left


def can_trace() -> bool:
    """Whether strace is here and may attach to a child."""
    if shutil.which("strace") is None or sys.platform != "linux":
        return False
    probe = subprocess.run(
        ["strace", "-o", os.devnull, "-e", "trace=fsync", "-e", "inject=fsync:signal=KILL", "true"],
        capture_output=True, check=False,
    )  # fmt: skip
    return probe.returncode == 0


def kill_at_every_call(
    how: How, every: int = 1, broken: Callable[[str], None] = print, killed_at: Callable[[str], None] = lambda _: None
) -> None:
    """One process, one publication and one kill for each call that a peaceful publication makes.

    Args:
        every: take only every so many calls, to be quick.
        broken: is told of each promise that did not hold.
        killed_at: is told the name of the call of each kill.
    """
    for name, count in count_calls(how).items():
        for point in range(1, count + 1, every):
            with _prepared() as home:
                code = _one(home, how, name, point)
                if code not in (0, -signal.SIGKILL):
                    raise RuntimeError(f"the publisher ended with {code}")
                for problem in problems(home, was_killed=code != 0):
                    broken(f"{name}, call {point}: {problem}")
                if code != 0:
                    killed_at(name)


def count_calls(how: How) -> Counter[str]:
    """How many calls of each name a publication makes."""
    with _prepared() as home:
        log = home.home / "calls"
        if how == "strace":
            _one(home, how, None, 0, log)
            return Counter(re.findall(r"^\d+ +(\w+)\(", log.read_text(encoding="utf-8"), re.MULTILINE))
        code = _one(home, how, "call", NEVER)
        if code != 0:
            raise RuntimeError(f"the publisher ended with {code}")
        return Counter({"call": NEVER - int((home.home / "left").read_text(encoding="utf-8"))})


@contextlib.contextmanager
def _prepared() -> Iterator[HomePaths]:
    with tempfile.TemporaryDirectory(prefix="kill_points_") as folder:
        home = HomePaths(Path(folder) / "home")
        home.prepare()
        store = RunStore(home.database)
        store.create(RUN_ID, "distillation", {})
        store.claim(RUN_ID)
        store.close()
        yield home


def _one(home: HomePaths, how: How, name: str | None, point: int, log: Path | None = None) -> int:
    """One publisher to its end; its exit code, negative when a signal ended it."""
    arguments = [sys.executable, __file__, str(home.home), str(point if how == "audit hook" else 0)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the publisher did not get ready")
        tracer = None
        if how == "strace":
            what = [f"trace={CALLS}"] if name is None else [f"trace={name}", f"inject={name}:signal=KILL:when={point}"]
            options = [part for option in what for part in ("-e", option)]
            tracer = subprocess.Popen(
                ["strace", "-f", "-p", str(process.pid), "-o", str(log or os.devnull), *options],
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert tracer.stderr is not None
            if "attached" not in tracer.stderr.readline():
                raise RuntimeError("strace did not attach")
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("go\n")
            process.stdin.flush()
        code = process.wait(60)
        if tracer is not None:
            tracer.communicate(timeout=60)
        return code


def problems(home: HomePaths, was_killed: bool) -> list[str]:
    """The promises that do not hold for what a process left."""
    found, folder = [], home.checkpoints(RUN_ID)
    try:
        for path in list_checkpoints(folder):
            verify_checkpoint(path)
    except CheckpointError as error:
        found.append(f"torn: {error}")
    steps = {checkpoint_step(path) for path in list_checkpoints(folder)}
    if 3 not in steps or (4 not in steps and (not was_killed or 2 not in steps)):
        found.append(f"lost: the checkpoints left are {sorted(steps)}")
    row = RunStore(home.database).get(RUN_ID)
    if row.checkpoint_path is None or not Path(row.checkpoint_path).is_dir():
        found.append(f"the row names {row.checkpoint_path}, which is not there")
    try:
        read_exact_header(folder / "adapters.safetensors")
        best = (folder / "adapters.safetensors").read_bytes()
        if best not in [(path / "adapters.safetensors").read_bytes() for path in list_checkpoints(folder)[-2:]]:
            found.append("the published adapter is none of the two newest")
        remove_leftovers(folder)
        load_checkpoint(list_checkpoints(folder)[-1])
    except (OPDError, OSError) as error:
        found.append(f"cannot go on: {error}")
    litter = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return found + ([f"litter: {litter}"] if litter else [])


if __name__ == "__main__":
    child(HomePaths(Path(sys.argv[1])), int(sys.argv[2]))
