"""`make schemathesis`: the document at /openapi.json against the server that made it, by generated requests.

The use cases are fakes, so that whatever is well formed is taken: what is tried is the door. All checks are on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import uvicorn

import opd_core.demo
from opd_core.control.prompts.inspection import PromptInspection
from server.arguments.studies import InspectArguments
from server.serving import listen
from server.web.app import http_app
from server.web.binding import bind
from server.web.listening import server_config
from tests.server.fakes import FakeUseCases
from tests.server.records import COMPARED, PROBED, completed

TOKEN = "t" * 43
CONFIGURATION = """\
[checks.negative_data_rejection]
# what is refused for its size alone is refused, too; a 5xx is never right here
expected-statuses = [400, 401, 404, 405, 409, 413, 414, 415, 422, 431]
"""
HELD_OUT_FILE = Path(opd_core.demo.__file__).with_name("held_out.jsonl")


class ForgetfulUseCases(FakeUseCases):
    """Answers everything and remembers nothing; whatever file is named, it reads the demo's."""

    def _note(self, *call: object) -> None:
        pass

    def inspect_prompts(self, arguments: InspectArguments) -> PromptInspection:
        files = {"prompts_path": str(HELD_OUT_FILE), "validation_prompts_path": None}
        return super().inspect_prompts(arguments.model_copy(update=files))


def main(arguments: list[str] | None = None) -> int:
    """Serve the fakes on a free port and let schemathesis at them; returns its exit code."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--max-examples", type=int, default=200, help="requests a route (default: 200)")
    options.add_argument("--seed", type=int, default=1, help="of the generated requests (default: 1)")
    given, further = options.parse_known_args(arguments)

    listener = listen("127.0.0.1", 0)
    binding = bind("127.0.0.1", listener.getsockname()[1])
    cases = ForgetfulUseCases(rows=[completed()], lines=[{"step": 1}], result=COMPARED, probe=PROBED)
    app = http_app(cases, token=TOKEN, hosts=binding.hosts, origins=binding.origins)
    server = uvicorn.Server(server_config(app, binding.host, binding.port))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with tempfile.TemporaryDirectory() as folder:  # its caches stay out of the checkout
            Path(folder, "schemathesis.toml").write_text(CONFIGURATION, encoding="utf-8")
            return subprocess.run(
                [
                    *(sys.executable, "-m", "schemathesis.cli", "run", f"{binding.url}/openapi.json"),
                    *("--header", f"Authorization: Bearer {TOKEN}", "--checks", "all", "--mode", "all"),
                    *("--max-examples", str(given.max_examples), "--seed", str(given.seed)),
                    *("--exclude-path", "/opd/events"),  # its answer never ends
                    *("--generation-database", "none", "--continue-on-failure", *further),
                ],
                cwd=folder,
                check=False,
            ).returncode
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
