"""The peers' own environment, `.bench/peers`, made from the extra `bench` of pyproject.toml when it is not there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".bench" / "peers"


def peers_python() -> Path:
    """The environment's interpreter."""
    return FOLDER / "bin" / "python"


def pins() -> list[str]:
    """The extra's requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: list[str] = project["optional-dependencies"]["bench"]
    return found


def ensure_peers() -> None:
    """Make the environment, or make it anew when the pins have changed; minutes, and about 200 MB on Linux."""
    wanted, ready = "\n".join(pins()), FOLDER / ".ready"
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return
    print(f"Setting up {FOLDER.relative_to(ROOT)}, once: some minutes …", flush=True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
    install = [str(peers_python()), "-m", "pip", "install", "--quiet"]
    torch, *rest = pins()  # first and alone: whatever asks for torch later finds it, and takes no other build
    subprocess.run([*install, torch], check=True)
    subprocess.run([*install, torch, *rest], check=True)
    ready.write_text(wanted, encoding="utf-8")
