"""What the suites stand on: programs of the Node environment, servers as processes, whole outputs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
NODE_FOLDER = ROOT / ".node"
CLIENTS_FOLDER = ROOT / ".clients"
NODE_PROGRAM = NODE_FOLDER / "node_modules/node/bin/node"
CONFORMANCE = NODE_FOLDER / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
INSPECTOR = NODE_FOLDER / "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
SERVE = ("-P", "-m", "server.cli", "serve")
SERVE_HTTP = (*SERVE, "--http", "--port", "0")
PATIENCE_SECONDS = 180.0
"""For anything that hangs: far more than it needs on a busy machine."""


@dataclass(frozen=True)
class Served:
    """A server that listens."""

    url: str
    token: str


@dataclass(frozen=True)
class Outcome:
    """What a finished program left."""

    code: int
    out: str
    err: str


@contextmanager
def served(home: Path, arguments: Sequence[str]) -> Iterator[Served]:
    """A Python server over HTTP that greets with its address; it is interrupted in the end."""
    home.parent.mkdir(parents=True, exist_ok=True)
    log = home.parent / "server.log"
    environment = {"OPD_HOME": str(home), "HOME": str(home.parent), "PATH": "/usr/bin:/bin"}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stderr=stderr
        )
    try:
        wait_until(lambda: process.poll() is not None or b"\n" in log.read_bytes(), 60, "greeting of the server")
        text = log.read_text(encoding="utf-8")
        found = re.match(r"Serving on (http://127\.0\.0\.1:\d+); ", text)
        assert found is not None, text
        yield Served(found[1], (home / "token").read_text(encoding="utf-8").strip())
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def finished(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run a program to its end, with `folder` as its HOME and nothing of this process's settings."""
    own = {"HOME": str(folder), "PATH": os.pathsep.join((str(NODE_PROGRAM.parent), os.environ["PATH"]))}
    run = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**own, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return Outcome(run.returncode, run.stdout, run.stderr)
