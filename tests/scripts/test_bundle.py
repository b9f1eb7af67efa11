"""The desktop extension: its manifest says what the server says, and what it holds can be built and validated."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from mcp.client import Client

from opd_core import __version__
from scripts.bundle import ENTRY_POINT, ROOT, manifest, write_bundle
from server.app import server_for
from server.cli import parser
from server.prompts import PROMPTS
from server.protocol.texts import TOOLS
from server.settings import KNOWN
from tests.server.fakes import FakeUseCases

MCPB = ROOT / ".node/node_modules/.bin/mcpb"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    with zipfile.ZipFile(write_bundle(folder)) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_manifest_lists_the_tools_and_prompts_of_the_server() -> None:
    made = manifest()
    assert [tool["name"] for tool in made["tools"]] == list(TOOLS)
    assert [prompt["name"] for prompt in made["prompts"]] == list(PROMPTS)
    for tool in made["tools"]:
        assert TOOLS[tool["name"]].description.startswith(tool["description"].rstrip("."))
        assert len(tool["description"]) < 400
    for prompt in made["prompts"]:
        assert prompt["arguments"] == [argument.name for argument in PROMPTS[prompt["name"]][3]]


def test_the_manifest_agrees_with_a_server_that_a_client_has_asked() -> None:
    import anyio

    async def names() -> tuple[list[str], list[str]]:
        async with Client(server_for(FakeUseCases())) as client:
            tools, prompts = await client.list_tools(), await client.list_prompts()
            return [tool.name for tool in tools.tools], [prompt.name for prompt in prompts.prompts]

    made = manifest()
    assert anyio.run(names) == ([tool["name"] for tool in made["tools"]], [entry["name"] for entry in made["prompts"]])


def test_the_version_is_the_packages_in_all_three_places() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert manifest()["version"] == __version__ == project["version"]
    assert manifest()["compatibility"]["runtimes"]["python"] == project["requires-python"]


def test_the_server_is_started_by_a_command_that_exists_with_settings_that_are_read() -> None:
    start = manifest()["server"]["mcp_config"]
    assert start["command"] == "uv" and start["args"][:3] == ["run", "--directory", "${__dirname}"]
    script, *words = start["args"][3:]
    assert script in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert callable(parser().parse_args(words).command)
    assert set(start["env"]) <= {"OPD_HOME", "ANTHROPIC_API_KEY", *KNOWN}


def test_every_value_that_is_asked_is_used_and_every_placeholder_has_a_default() -> None:
    made = manifest()
    used = re.findall(r"\$\{user_config\.(\w+)\}", json.dumps(made["server"]))
    assert sorted(used) == sorted(made["user_config"])
    assert all("default" in option for option in made["user_config"].values())
    assert made["user_config"]["api_key"]["sensitive"] is True
    assert made["user_config"]["api_key"]["required"] is False


def test_the_bundle_holds_the_manifest_the_sources_and_nothing_else(unpacked: Path) -> None:
    assert json.loads((unpacked / "manifest.json").read_text(encoding="utf-8")) == manifest()
    assert (unpacked / ENTRY_POINT).is_file()
    assert {path.name for path in unpacked.iterdir()} == {
        "manifest.json",
        "pyproject.toml",
        "README.md",
        "server",
        "opd_core",
    }
    for path in unpacked.rglob("*"):
        assert not path.name.startswith(".") and path.suffix not in {".pyc", ".db", ".log"}, path


def test_the_bundle_pins_the_versions_that_were_tested(unpacked: Path) -> None:
    made = tomllib.loads((unpacked / "pyproject.toml").read_text(encoding="utf-8"))
    pins = made["tool"]["uv"].pop("constraint-dependencies")
    assert all("==" in pin for pin in pins) and any(pin.startswith("mcp==") for pin in pins)
    del made["tool"]["uv"]
    assert made == tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    assert write_bundle(tmp_path / "a").read_bytes() == write_bundle(tmp_path / "b").read_bytes()


def test_what_is_in_the_bundle_builds_as_a_project(unpacked: Path, tmp_path: Path) -> None:
    wheels = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    (wheel,) = wheels.WheelBuilder(str(unpacked)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        assert ENTRY_POINT in archive.namelist()


def test_the_server_in_the_bundle_starts(unpacked: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import server.cli; print(server.cli.__file__); server.cli.main(['--version'])"],
        env={"PYTHONPATH": str(unpacked), "PATH": os.defpath},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == [str(unpacked / "server/cli.py"), f"opd {__version__}"]


@pytest.mark.suite
@pytest.mark.skipif(not MCPB.exists(), reason="the Node environment is not there; make node")
def test_the_official_validator_accepts_the_manifest(unpacked: Path) -> None:
    done = subprocess.run([MCPB, "validate", unpacked], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
