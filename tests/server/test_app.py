"""The server process: what it has imported, that it starts without a home, and that it really speaks over stdio."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from mcp import StdioServerParameters
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from server.app import LISTS_STAY_MS, server_for
from server.protocol.texts import TOOLS
from server.resources import RUNS_URI, run_uri
from server.verbs import VERBS
from tests.server.fakes import ERAS, Era, FakeUseCases, data_of, text_of

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"mlx", "mlx_lm", "transformers", "anthropic", "torch"}
# Needed by some call perhaps, but not before the first one.
LATE = {"PIL", "tokenizers", "yaml", "jsonschema", "numpy", "sqlite_utils", "opd_core.control", "opd_core.state.store"}

SCRIPT = """
import json, sys
from server.app import build_server
from server.settings import read_settings
from server.home_use_cases import HomeUseCases

settings = read_settings()
build_server(settings)
started = sorted(sys.modules)
cases = HomeUseCases(settings)
try:
    cases.status(None)
except LookupError:
    pass
cases.list(None, None, 10, None)
cases.list_models()
cases.estimate
import opd_core.control.setup_check, opd_core.control.estimate.estimating
print(json.dumps([started, sorted(sys.modules)]))
"""


def modules_after_start(home: Path) -> tuple[set[str], set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={"OPD_HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    started, called = json.loads(done.stdout)
    return set(started), set(called)


def test_a_fresh_server_process_imports_no_model_library_and_nothing_early(tmp_path: Path) -> None:
    started, called = modules_after_start(tmp_path / "home")
    assert not FORBIDDEN & {name.split(".")[0] for name in called}
    assert not LATE & started
    assert not {"training", "teachers"} & {name.split(".")[1] for name in called if name.startswith("opd_core.")}


def test_starting_and_reading_make_no_home(tmp_path: Path) -> None:
    modules_after_start(tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_every_tool_has_its_text_and_its_arguments() -> None:
    assert list(TOOLS) == list(VERBS)
    for verb in VERBS.values():
        assert verb.arguments.model_config["extra"] == "forbid"


@pytest.mark.parametrize("era", ERAS)
def test_the_served_process_answers_over_stdio_and_tells_an_unusable_home_in_the_call(tmp_path: Path, era: Era) -> None:
    (tmp_path / "file").write_text("")
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "server.cli", "serve"],
        env={"OPD_HOME": str(tmp_path / "file"), "PYTHONPATH": str(ROOT)},
    )
    configuration = {
        "base_model_path": "tiny",
        "prompts_path": str(tmp_path / "none.txt"),
        "teacher_system_prompt": "Answer in JSON.",
    }

    async def go() -> None:
        with anyio.fail_after(60):
            async with Client(parameters, mode=era) as client:
                data = data_of(await client.call_tool("check_setup", {}))
                assert data["ready"] is False and "OPD_HOME" in data["problems"][0]["what"]
                result = await client.call_tool("start_distillation", configuration)
                assert result.is_error and "base_model_path" in text_of(result)

    anyio.run(go)


@pytest.mark.parametrize("era", ERAS)
def test_resources_and_prompts_are_served_over_stdio_too(tmp_path: Path, era: Era) -> None:
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "server.cli", "serve"],
        env={"OPD_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
    )

    async def go() -> None:
        with anyio.fail_after(60):
            async with Client(parameters, mode=era) as client:
                (runs,) = (await client.read_resource(RUNS_URI)).contents
                assert '"runs":[]' in runs.model_dump()["text"]
                prompt = await client.get_prompt("after_fine_tune", {"adapter_path": "/a"})
                assert "/a" in prompt.messages[0].model_dump_json()
                with pytest.raises(MCPError, match="no runs yet"):
                    await client.read_resource(run_uri("latest", "report"))

    anyio.run(go)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("era", ERAS)
def test_nothing_is_advertised_that_is_not_served(era: Era) -> None:
    async def go() -> None:
        async with Client(server_for(FakeUseCases()), mode=era) as client:
            offered = client.server_capabilities
            assert offered is not None and offered.logging is None and offered.tasks is None
            assert offered.tools and offered.resources and offered.prompts and offered.completions
            # before 2026-07-28 there are no subscriptions here: resources/subscribe is not served
            assert bool(offered.resources.subscribe) is (era == "auto")

    anyio.run(go)


def test_a_client_may_keep_the_lists_for_a_while() -> None:
    async def go() -> None:
        async with Client(server_for(FakeUseCases())) as client:
            for listed in (await client.list_tools(), await client.list_resources(), await client.list_prompts()):
                assert listed.ttl_ms == LISTS_STAY_MS and listed.cache_scope == "private"

    anyio.run(go)
