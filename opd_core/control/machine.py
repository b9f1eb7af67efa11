"""What this machine has: memory, disk, the device MLX would use. Looks only; imports no MLX."""

from __future__ import annotations

import contextlib
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

GB = 1e9
Device = Literal["metal", "cuda", "cpu"]
BLAS_FACT = "blas"
"""Under this name the home keeps the measured speed of matrix products."""


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory (shared with the GPU on Apple silicon); `None` where the system does not say."""

    total_bytes: int | None
    available_bytes: int | None


def read_memory() -> Memory:
    """Total and available memory; inside a container, not more than its limit."""
    return _macos_memory() if sys.platform == "darwin" else _linux_memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup"))


def free_disk_bytes(folder: Path) -> int | None:
    """Free bytes on the file system where `folder` lies or would lie."""
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def guess_device() -> Device:
    """The device MLX would take by default, guessed from the platform and the installed packages."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "metal"
    installed = {name.lower() for name in ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13") if package_version(name)}
    return "cuda" if installed and Path("/dev/nvidia0").exists() else "cpu"


def package_version(name: str) -> str | None:
    """The installed version of a package, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _linux_memory(meminfo: Path, cgroup: Path) -> Memory:
    try:
        text = meminfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return Memory(None, None)
    amounts = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    total, available = amounts.get("MemTotal"), amounts.get("MemAvailable")
    with contextlib.suppress(OSError, ValueError):  # without a limit it reads "max"; elsewhere it is absent
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        total = min(total or limit, limit)
        available = min(available or limit, max(limit - used, 0))
    return Memory(total, available)


def _macos_memory() -> Memory:
    total = _output(["/usr/sbin/sysctl", "-n", "hw.memsize"])
    pages = _output(["/usr/bin/vm_stat"])
    return Memory(int(total) if total.strip().isdigit() else None, parse_vm_stat(pages))


def parse_vm_stat(text: str) -> int | None:
    """Available bytes by `vm_stat`: free, inactive, speculative and purgeable pages."""
    size = re.search(r"page size of (\d+) bytes", text)
    counts = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)", text, re.MULTILINE)
    return int(size.group(1)) * sum(map(int, counts)) if size and counts else None


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
