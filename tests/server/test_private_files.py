"""What a process leaves behind and says: private files whatever the umask, standard output for the protocol alone."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import StdioServerParameters
from mcp.client import Client

from tests.server.fakes import ERAS, Era, data_of
from tests.server.test_end_to_end import ended
from tests.small_runs import NEEDS_INSTALLED_PROJECT, configuration, make_home

ROOT = Path(__file__).resolve().parents[2]
OPEN_SERVER = "import os; os.umask(0); from server.cli import main; raise SystemExit(main(['serve']))"
NOISY_SERVER = """
import os, subprocess, sys
from server import app, home_use_cases
from server.cli import main

class Noisy(home_use_cases.HomeUseCases):
    def check_setup(self):
        print("noise from print", flush=True)
        os.write(1, b"noise from the descriptor\\n")
        subprocess.run(["/bin/echo", "noise from a child"], check=True)
        sys.stdout.write("half a line of noise")
        return super().check_setup()

app.HomeUseCases = Noisy
os.dup2(os.open(os.path.join(os.environ["OPD_HOME"], "stderr.txt"), os.O_WRONLY | os.O_CREAT, 0o600), 2)
raise SystemExit(main(["serve"]))
"""


def server(script: str, home: Path) -> StdioServerParameters:
    environment = {"OPD_HOME": str(home), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return StdioServerParameters(command=sys.executable, args=["-c", script], env=environment)


@pytest.mark.parametrize("era", ERAS)
def test_whatever_is_printed_the_protocol_stays_clean(tmp_path: Path, era: Era) -> None:
    """S21: a library that prints, a child that inherits: all of it ends up on standard error."""

    async def go() -> None:
        with anyio.fail_after(60):
            async with Client(server(NOISY_SERVER, tmp_path), mode=era) as client:
                for _ in range(2):
                    assert "facts" in data_of(await client.call_tool("check_setup", {}))

    anyio.run(go)
    said = (tmp_path / "stderr.txt").read_text(encoding="utf-8")
    for noise in ("noise from print", "noise from the descriptor", "noise from a child", "half a line of noise"):
        assert noise in said


@pytest.mark.slow
@NEEDS_INSTALLED_PROJECT
def test_every_file_of_a_run_is_private_whatever_the_umask(tmp_path: Path) -> None:
    """S20."""
    house = make_home(tmp_path / "home")
    ours = {path for path in house.rglob("*")}
    called: list[str] = []

    async def call(client: Client, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        called.append(name)
        return data_of(await client.call_tool(name, arguments))

    async def go() -> None:
        with anyio.fail_after(240):
            async with Client(server(OPEN_SERVER, house)) as client:
                tools = {tool.name for tool in (await client.list_tools()).tools}
                await call(client, "check_setup", {})
                run_id = (await call(client, "start_distillation", configuration(house)))["run_id"]
                assert (await ended(client, run_id))["state"] == "completed"
                compared = await call(client, "compare_adapters", {"run_id": run_id, "timeout_seconds": 1})
                await ended(client, compared["job_id"])
                for name in {"export_report", "diagnose_run", "read_log"} & tools:
                    await call(client, name, {"run_id": run_id})

    anyio.run(go)
    made = [path for path in sorted(house.rglob("*")) if path not in ours]
    assert {"opd.db", "locks", "configs", "metrics", "rollouts", "checkpoints", "logs", "results"} <= {
        path.relative_to(house).parts[0] for path in made
    }
    modes = {str(path.relative_to(house)): path.lstat().st_mode for path in made if not path.is_symlink()}
    assert not {name: oct(mode) for name, mode in modes.items() if mode & 0o077}
    assert not [name for name, mode in modes.items() if stat.S_ISREG(mode) and mode & 0o100], "no file is executable"
