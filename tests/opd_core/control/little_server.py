"""A process that does what a server does for runs and nothing else: starts the next job when told to.

`python little_server.py HOME`: says "ready", waits for a line, starts the next queued job, says "done", and lives until
its input ends.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from opd_core.control.supervisor import Supervisor
from opd_core.paths import HomePaths
from opd_core.state.store import RunStore
from tests.opd_core.control.scripted_worker import COMMAND, ROOT

PROGRAM = (
    *(sys.executable, "-P", "-c"),
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.opd_core.control.little_server import main; main()",
)


def start(home: HomePaths) -> subprocess.Popen[str]:
    """Start one in a process group of its own and wait until it is ready."""
    server = subprocess.Popen(
        [*PROGRAM, str(home.home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


def main() -> None:
    home = HomePaths(Path(sys.argv[1]))
    supervisor = Supervisor(home, RunStore(home.database), COMMAND)
    print("ready", flush=True)
    sys.stdin.readline()
    supervisor.start_next_queued()
    print("done", flush=True)
    sys.stdin.read()
