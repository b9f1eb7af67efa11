"""The layout of OPD_HOME: the only code that joins a path under it, and how whole files are published.

Files are 0600 and folders 0700. A file that is replaced is replaced whole: temporary name, fsync, rename,
fsync of the folder.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opd_core.errors import ConfigError, HomeError

RUN_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class HomePaths:
    """Where everything lies under one OPD_HOME. Joins paths, makes folders, reads nothing."""

    home: Path

    @property
    def database(self) -> Path:
        """The SQLite file with runs, events, recent metrics."""
        return self.home / "opd.db"

    @property
    def locks(self) -> Path:
        """The folder of kernel-lock files; a lock file is never unlinked."""
        return self.home / "locks"

    @property
    def models(self) -> Path:
        """The folder of imported models, one folder a model."""
        return self.home / "models"

    @property
    def device_lock(self) -> Path:
        """Held by the one running worker of this home."""
        return self.locks / "device.lock"

    def run_lock(self, run_id: str) -> Path:
        """Held by the run's worker for as long as it lives: the truth about liveness."""
        return self.locks / f"{run_id}.lock"

    def config(self, run_id: str) -> Path:
        """The complete resolved configuration."""
        return self.home / "configs" / f"{run_id}.yaml"

    def rollouts(self, run_id: str, split: str, config: Mapping[str, Any] | None = None) -> Path:
        """`split` is "train" or "val"; under the home, or in the folder that the run's configuration names for it."""
        is_train = split == "train"
        named = (config or {}).get("rollout_output_dir" if is_train else "val_rollout_dir")
        folder = Path(named) if named else self.home / "rollouts" / split
        return folder / f"{run_id}_{'rollouts' if is_train else 'val_rollouts'}.jsonl"

    def metrics(self, run_id: str, series: str) -> Path:
        """`series` is "train" or "eval"."""
        return self.home / "metrics" / f"{run_id}_{series}.jsonl"

    def checkpoints(self, run_id: str) -> Path:
        """The run's adapter folder: the best adapter itself, and one folder per step inside."""
        return self.home / "checkpoints" / run_id

    def checkpoint_folder(self, run_id: str, checkpoint_dir: str | None) -> Path:
        """Where a run's checkpoints lie: `checkpoints`, or in the folder of its configuration that a person allowed."""
        return Path(checkpoint_dir) / run_id if checkpoint_dir else self.checkpoints(run_id)

    def log(self, run_id: str) -> Path:
        """What the worker printed; what no longer fits is in its `older_generation`, and then gone."""
        return self.home / "logs" / f"{run_id}.log"

    def completions(self, run_id: str) -> Path:
        """Every text a teacher gave; append-only, never cut back."""
        return self.home / "teacher_completions" / f"{run_id}_completions.jsonl"

    def result(self, job_id: str) -> Path:
        """The result of a job that is not a distillation, for example a comparison."""
        return self.home / "results" / f"{job_id}.json"

    def report(self, run_id: str, suffix: str) -> Path:
        """The report of a run; `suffix` is "html" or "md"."""
        return self.home / "reports" / f"{run_id}.{suffix}"

    def prepare(self) -> None:
        """Create the home and its fixed folders, private to the user.

        Raises:
            HomeError: the home cannot be created or written.
        """
        try:
            for folder in (self.home, self.locks, self.models, self.home / "configs", self.home / "logs"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self.home, os.W_OK | os.X_OK):
                raise PermissionError("no write permission")
        except OSError as error:
            reason = error.strerror or str(error)
            raise HomeError(
                f"OPD_HOME {str(self.home)!r} cannot be used: {reason}. "
                "Make it a writable folder or set OPD_HOME to one, then start the server again."
            ) from error


def older_generation(log: Path) -> Path:
    """Where a log lies that was full: one, before the current one."""
    return log.with_name(f"{log.name}.1")


def default_home() -> Path:
    """OPD_HOME from the environment, else ~/OnPolicyDistill; never the current directory."""
    configured = os.environ.get("OPD_HOME")
    return Path(configured).expanduser().absolute() if configured else Path.home() / "OnPolicyDistill"


def check_run_id(run_id: str) -> str:
    """Return `run_id` when it may be used in a file name, else raise ConfigError."""
    if not RUN_ID_PATTERN.fullmatch(run_id):
        raise ConfigError(
            f"run_id {run_id[:80]!r} is not allowed: use 1 to 64 letters, digits, '_' or '-', "
            "or leave run_id out and one is made.",
            field="run_id",
        )
    return run_id


def new_run_id(
    prefix: str = "opd",
    now: datetime | None = None,
    taken: bool = False,
    token: Callable[[int], str] = secrets.token_hex,
) -> str:
    """`opd_20261123_123456` in UTC, with a short random suffix when that name is taken."""
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%d_%H%M%S")
    return f"{prefix}_{stamp}_{token(2)}" if taken else f"{prefix}_{stamp}"


def utc_now() -> str:
    """The present moment as ISO 8601 in UTC with milliseconds, for records people read."""
    return iso_utc(datetime.now(UTC))


def iso_utc(moment: datetime) -> str:
    """`2026-11-23T12:00:00.000Z`; the moment is in UTC."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def fsync_path(path: Path) -> None:
    """Flush a file or a folder to the disk; on macOS through the drive's cache as well."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fsync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def fsync_descriptor(descriptor: int) -> None:
    """fsync, and F_FULLFSYNC where it exists: on macOS a plain fsync leaves data in the drive's cache."""
    import fcntl

    if hasattr(fcntl, "F_FULLFSYNC"):
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError:
            pass  # not every file system knows it
    os.fsync(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            fsync_descriptor(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of indented JSON; refuses NaN and infinity."""
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
