"""A worker that is killed at a chosen moment of its first paid call: `python -m … HOME URL MOMENT`.

MOMENT: "before_send" and "after_reply" kill in the transport of a single call; "after_submit" when a batch has been
taken and before its id is known. The process dies by SIGKILL, as by the kernel or a person.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2

from opd_core.teachers.transport import direct_transport
from tests.endpoint import Endpoint
from tests.opd_core.teachers.claude_kit import Kit, ask

ROOT = Path(__file__).parents[3]


class DyingTransport(httpx2.AsyncBaseTransport):
    """Kills its own process before or after the first POST."""

    def __init__(self, moment: str) -> None:
        self._moment = moment
        self._inner = direct_transport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self._moment == "before_send":
            os.kill(os.getpid(), signal.SIGKILL)
        response = await self._inner.handle_async_request(request)
        await response.aread()
        if request.method == "POST":
            os.kill(os.getpid(), signal.SIGKILL)
        return response


def main() -> None:
    folder, url, moment = sys.argv[1:]
    kit = Kit(Path(folder), cast(Endpoint, SimpleNamespace(url=url)))
    settings: dict[str, Any] = {"use_batches": moment == "after_submit"}
    teacher = kit.teacher(transport=lambda: DyingTransport(moment), **settings)
    teacher.references([ask(), ask("another")], may_wait=True)


def die(kit: Kit, moment: str) -> None:
    """Run a worker on this kit's home that is killed at `moment`."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.opd_core.teachers.dying_client import main; main()"
    )
    command = [sys.executable, "-P", "-c", program, str(kit.database.parent), kit.endpoint.url, moment]
    done = subprocess.run(command, timeout=60, env=os.environ)
    assert done.returncode == -signal.SIGKILL


if __name__ == "__main__":
    main()
