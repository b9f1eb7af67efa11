"""How fast the server answers: from starting the process to its first answer, and per call.

Beside it, in the same run and in turns, a bare server of the same SDK with one trivial tool: the floor. The first
call of ours is `get_status` of a recorded run, so it opens the database. Exit code 1 only when the median start takes
more than 1.3 times the bare server's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
from mcp import StdioServerParameters
from mcp.client import Client

from opd_core.config import parse_config
from opd_core.paths import HomePaths
from opd_core.state.store import RunStore

PROMISED_START_RATIO = 1.3
BARE_SERVER = """
from mcp.server import MCPServer

server = MCPServer("bare", log_level="WARNING")


@server.tool()
async def ping() -> str:
    return "pong"


server.run("stdio")
"""
RUN_ID = "opd_latency"


async def measure(parameters: StdioServerParameters, tool: str, calls: int) -> tuple[float, list[float]]:
    """Seconds from the start of the process to its first answer, and seconds of each later call."""
    arguments = {"run_id": RUN_ID} if tool == "get_status" else {}
    started = time.perf_counter()
    async with Client(parameters) as client:
        result = await client.call_tool(tool, arguments)
        first = time.perf_counter() - started
        if result.is_error:
            raise SystemExit(f"{tool} failed: {result.content}")
        durations = []
        for _ in range(calls):
            before = time.perf_counter()
            await client.call_tool(tool, arguments)
            durations.append(time.perf_counter() - before)
    return first, durations


def prepare(folder: Path) -> dict[str, tuple[StdioServerParameters, str]]:
    """The two servers: their start parameters and the tool to call."""
    bare = folder / "bare_server.py"
    bare.write_text(BARE_SERVER, encoding="utf-8")
    home = HomePaths(folder / "home")
    home.prepare()
    store = RunStore(home.database)
    config = parse_config({"base_model_path": "none", "prompts_path": "none.txt", "run_id": RUN_ID})
    store.create(RUN_ID, "distillation", config.model_dump(mode="json"), total_steps=config.num_training_steps)
    store.request_stop(RUN_ID)  # ended: nothing must be started while we measure
    store.close()
    root = str(Path(__file__).resolve().parent.parent)
    ours = StdioServerParameters(
        command=sys.executable,
        args=["-m", "server.cli", "serve"],
        env={"OPD_HOME": str(home.home), "PYTHONPATH": root},
    )
    return {
        "bare": (StdioServerParameters(command=sys.executable, args=[str(bare)]), "ping"),
        "opd": (ours, "get_status"),
    }


def run(spawns: int, calls: int) -> dict[str, Any]:
    """Measure both servers in turns; the first pair warms the file cache and does not count."""
    starts: dict[str, list[float]] = {"bare": [], "opd": []}
    durations: dict[str, list[float]] = {"bare": [], "opd": []}
    with tempfile.TemporaryDirectory(prefix="opd_latency_") as folder:
        servers = prepare(Path(folder))
        for turn in range(spawns + 1):
            for name, (parameters, tool) in servers.items():
                first, taken = anyio.run(measure, parameters, tool, calls)
                if turn:
                    starts[name].append(first)
                    durations[name] += taken
    start = {name: statistics.median(values) for name, values in starts.items()}
    call = {name: statistics.median(values) for name, values in durations.items()}
    return {
        "spawns": spawns,
        "calls_per_spawn": calls,
        "start_seconds": start,
        "start_ratio": start["opd"] / start["bare"],
        "promised_start_ratio": PROMISED_START_RATIO,
        "call_milliseconds": {name: 1000 * value for name, value in call.items()},
        "call_ratio": call["opd"] / call["bare"],
        "all_start_seconds": starts,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spawns", type=int, default=9, help="processes of each kind (default: 9)")
    parser.add_argument("--calls", type=int, default=100, help="calls in each process (default: 100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    found = run(options.spawns, options.calls)
    start, call = found["start_seconds"], found["call_milliseconds"]
    print(f"{'':34}{'bare':>10}{'opd':>10}{'ratio':>8}")
    print(f"{'start to first answer, s':34}{start['bare']:10.3f}{start['opd']:10.3f}{found['start_ratio']:8.2f}")
    print(f"{'one call (ping, get_status), ms':34}{call['bare']:10.2f}{call['opd']:10.2f}{found['call_ratio']:8.2f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if found["start_ratio"] > PROMISED_START_RATIO:
        print(f"The start takes more than {PROMISED_START_RATIO} times the bare server's.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
