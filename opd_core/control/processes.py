"""Kernel locks and process identities: who is alive, and which process a number means.

A lock is the truth about life: the kernel drops it with the last process that holds it, however that one ends. A
process number is not: zombies answer to it and it is used again. Lock files are never unlinked, since two processes
could then hold "the same" lock on two files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from opd_core import blas
from opd_core.allocator import allocator_environment
from opd_core.errors import HomeError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def try_lock(path: Path) -> int | None:
    """Take the exclusive lock on a file without waiting; the descriptor that holds it, or None when it is held.

    The lock belongs to the open file, not to the process: a child that inherits the descriptor holds it too, and it
    lasts until the last copy is closed. flock, not lockf: POSIX locks vanish when any descriptor of the file closes.

    Raises:
        HomeError: the lock file cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HomeError(f"The lock file {path} cannot be made: {error.strerror}. Make its folder writable.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise HomeError(
            f"The file system of {path} has no locks ({error.strerror}). Set OPD_HOME to a folder on a local disk."
        ) from error
    return descriptor


def process_identity(pid: int) -> str | None:
    """What tells this process from a later one with the same number; None when there is none, or only a zombie."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            boot = BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # field 3 (state) and on: the name before it may hold anything
        return None if fields[0] in "ZX" else f"{boot} {fields[19]}"
    listing = subprocess.run(
        ["/bin/ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)],
        env={"LC_ALL": "C", "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    return None if not listing or listing[0].startswith("Z") else " ".join(listing[1:])


def signal_process(pid: int | None, identity: str | None, number: signal.Signals) -> bool:
    """As `Kernel.signal`, on this machine."""
    return KERNEL.signal(pid, identity, number)


class Kernel:
    """What starting, judging and stopping workers needs of the system; a simulation overrides all but `signal`."""

    def take_lock(self, path: Path) -> int | None:
        """As `try_lock`."""
        return try_lock(path)

    def drop_lock(self, descriptor: int) -> None:
        """Close this copy of a lock; the lock goes with the last copy. Never LOCK_UN: that would end all copies."""
        os.close(descriptor)

    def identity(self, pid: int) -> str | None:
        """As `process_identity`."""
        return process_identity(pid)

    def is_of_another_boot(self, identity: str) -> bool:
        """Whether the machine was started again since that process was; False where that cannot be told."""
        try:
            return sys.platform == "linux" and identity.split()[0] != BOOT_ID.read_text(encoding="ascii").strip()
        except (OSError, IndexError):
            return False

    def send(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal, SIGKILL to the whole group; False when there is no such process."""
        try:
            # A worker leads its own session, so its group has its number.
            os.killpg(pid, number) if number == signal.SIGKILL else os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def signal(self, pid: int | None, identity: str | None, number: signal.Signals) -> bool:
        """Signal a worker if the process with that number is still the one meant; SIGKILL goes to its whole group."""
        if pid is None or identity is None or self.identity(pid) != identity:
            return False
        return self.send(pid, number)

    def spawn(
        self, command: Sequence[str], log: Path, folder: Path, variables: Mapping[str, str], locks: Sequence[int]
    ) -> None:
        """Start a worker in its own session, with copies of these locks and its output in a log.

        Raises:
            OSError: it does not start.
        """
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=dict(variables) | blas.worker_environment(folder / "lib") | allocator_environment(),
                pass_fds=locks,
                start_new_session=True,
            )
        finally:
            os.close(output)
        # Reaps the child when it ends, so that it does not stay a zombie for as long as this process lives.
        threading.Thread(target=process.wait, name=f"reap {process.pid}", daemon=True).start()


KERNEL = Kernel()
"""This machine's."""
