"""Everything at once, small: a real server over stdio, a real client, a real worker, a tiny real model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from mcp import StdioServerParameters
from mcp.client import Client
from safetensors.numpy import save_file

from tests.server.fakes import data_of, text_of
from tests.small_runs import NEEDS_INSTALLED_PROJECT, configuration, make_home
from tests.tiny import write_tiny_model

pytestmark = [pytest.mark.slow, NEEDS_INSTALLED_PROJECT]
WAIT = {"timeout_seconds": 30}
Story = Callable[[Client], Awaitable[None]]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A home with one model and one prompt file."""
    return make_home(tmp_path / "home")


def parameters(home: Path) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable, args=["-P", "-m", "server.cli", "serve"], env={"OPD_HOME": str(home)}
    )


def tell(home: Path, story: Story) -> None:
    """Run a story with a client of a fresh server."""

    async def go() -> None:
        with anyio.fail_after(120):
            async with Client(parameters(home)) as client:
                await story(client)

    anyio.run(go)


async def ended(client: Client, run_id: str) -> dict[str, Any]:
    """Wait until a run has ended."""
    while True:
        data = data_of(await client.call_tool("wait_for_run", {"run_id": run_id, **WAIT}))
        if not data["timed_out"]:
            return data


def test_the_main_job_from_setup_to_comparison(house: Path) -> None:
    async def story(client: Client) -> None:
        assert data_of(await client.call_tool("check_setup", {}))["ready"]
        assert data_of(await client.call_tool("list_models", {}))["models"][0]["name"] == "tiny"
        estimate = data_of(await client.call_tool("estimate_cost", configuration(house)))
        assert estimate["steps"] == 4 and estimate["cost_usd"] == 0 and estimate["basis"] == "guess"
        request = configuration(house, client_request_id="once")
        started = data_of(await client.call_tool("start_distillation", request))
        again = data_of(await client.call_tool("start_distillation", request))
        assert again["run_id"] == started["run_id"]
        status = await ended(client, started["run_id"])
        assert status["state"] == "completed", status
        assert status["metrics"]["step"] == 4 and status["baseline"]["reverse_kl"] > 0
        adapter = Path(status["final_adapter_path"])
        assert (adapter / "adapters.safetensors").is_file()
        history = data_of(await client.call_tool("get_metrics", {}))["metrics_history"]
        assert [line["step"] for line in history] == [1, 2, 3, 4]
        compared = data_of(await client.call_tool("compare_adapters", WAIT))
        assert compared["status"] == "completed", compared
        assert [row["name"] for row in compared["rows"]] == ["base", "distilled"]
        assert data_of(await client.call_tool("estimate_cost", configuration(house)))["basis"] == "measured"
        assert data_of(await client.call_tool("diagnose_run", {}))["run_id"] == started["run_id"]
        assert "completed: " in data_of(await client.call_tool("read_log", {}))["lines"][-1]["text"]
        plot = await client.call_tool("plot_metrics", {})
        assert [block.type for block in plot.content] == ["image", "text"]
        report = data_of(await client.call_tool("export_report", {}))
        page = Path(report["html_path"]).read_text(encoding="utf-8")
        assert compared["summary"][:30] in page and "as the best checkpoint" in page

    tell(house, story)


def test_a_run_outlives_its_server_and_a_second_server_sees_it(house: Path) -> None:
    command = [sys.executable, "-P", "-m", "server.cli", "serve"]
    environment = {"OPD_HOME": str(house), "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert server.stdin is not None and server.stdout is not None
    calls = [
        {
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            },
        },
        {"method": "tools/call", "params": {"name": "start_distillation", "arguments": configuration(house)}},
    ]
    run_id = ""
    for number, message in enumerate(calls):
        server.stdin.write(json.dumps({"jsonrpc": "2.0", "id": number, **message}).encode() + b"\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        if number == 0:
            server.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
        else:
            run_id = answer["result"]["structuredContent"]["run_id"]
    os.killpg(server.pid, signal.SIGKILL)
    server.communicate()

    async def story(client: Client) -> None:
        assert (await ended(client, run_id))["state"] == "completed"

    tell(house, story)


def test_a_killed_worker_is_interrupted_and_resumes_to_the_end(house: Path) -> None:
    async def story(client: Client) -> None:
        request = configuration(house, num_training_steps=60, eval_every_steps=30)
        run_id = data_of(await client.call_tool("start_distillation", request))["run_id"]
        step = 0
        while step < 2:
            data = data_of(await client.call_tool("wait_for_run", {"run_id": run_id, "timeout_seconds": 0.1}))
            assert data["timed_out"], data
            step = data["metrics"]["step"]
        os.kill(worker_of(house, run_id), signal.SIGKILL)
        with anyio.fail_after(1):
            while (status := data_of(await client.call_tool("get_status", {"run_id": run_id})))["state"] == "running":
                await anyio.lowlevel.checkpoint()
        assert status["state"] == "interrupted" and "resume_distillation" in status["next_step"]
        resumed = data_of(await client.call_tool("resume_distillation", {"run_id": run_id}))
        assert resumed["status"] == "success"
        finished = await ended(client, run_id)
        assert finished["state"] == "completed" and finished["metrics"]["step"] == 60, finished
        lines = (house / "metrics" / f"{run_id}_train.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 61))  # no step twice, none missing

    tell(house, story)


def test_a_stopped_run_keeps_its_checkpoint_and_says_where(house: Path) -> None:
    async def story(client: Client) -> None:
        request = configuration(house, num_training_steps=1000)
        run_id = data_of(await client.call_tool("start_distillation", request))["run_id"]
        while not data_of(await client.call_tool("get_status", {"run_id": run_id}))["metrics"]["step"]:
            await anyio.lowlevel.checkpoint()
        stopped = data_of(await client.call_tool("stop_distillation", {"run_id": run_id, "timeout_seconds": 30}))
        assert stopped["state"] == "stopped" and stopped["final_step"] >= 1, stopped
        assert (Path(stopped["checkpoint_path"]) / "adapters.safetensors").is_file()

    tell(house, story)


def test_an_unusable_home_is_one_clear_error_of_the_call(house: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def story(client: Client) -> None:
        request = configuration(house, base_model_path=str(house / "models" / "tiny"))
        result = await client.call_tool("start_distillation", request)
        assert result.is_error and "OPD_HOME" in text_of(result) and "writable" in text_of(result), text_of(result)

    async def go() -> None:
        with anyio.fail_after(120):
            home = parameters(tmp_path / "file" / "home")
            environment = {**(home.env or {}), "OPD_ROOTS": str(house)}
            async with Client(home.model_copy(update={"env": environment})) as client:
                await story(client)

    anyio.run(go)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "home"]


def adapter_of_a_wider_model(folder: Path) -> Path:
    """An adapter that is sound in itself, for a base of another width."""
    folder.mkdir()
    keys = {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": keys}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    tensors = {f"{name}.lora_a": np.zeros((64, 2), np.float32) for name in names}
    tensors |= {f"{name}.lora_b": np.zeros((2, 64), np.float32) for name in names}
    save_file(tensors, folder / "adapters.safetensors")
    return folder


def worker_of(home: Path, run_id: str) -> int:
    """The worker's process id, as the run's row has it."""
    with contextlib.closing(sqlite3.connect(home / "opd.db")) as connection:
        (pid,) = connection.execute("SELECT pid FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    return int(pid)


def test_bad_inputs_give_one_clear_error_each_and_leave_nothing_behind(house: Path, tmp_path: Path) -> None:
    files = {
        "empty.jsonl": "",
        "bad.jsonl": '{"prompt": "a"}\n' * 6 + '{"prompt": \n',
        "good.txt": "one\ntwo\n",
    }
    for name, text in files.items():
        (house / name).write_text(text)
    other = write_tiny_model(house / "models" / "other", extra_token="ab")
    wide = adapter_of_a_wider_model(house / "models" / "adapter")
    before = sorted(str(path) for path in house.rglob("*"))

    bad: dict[str, dict[str, Any]] = {
        "does not exist": {"validation_prompts_path": str(house / "none.jsonl")},
        "folder": {"validation_prompts_path": str(house / "models")},
        "empty": {"validation_prompts_path": str(house / "empty.jsonl")},
        "line 7": {"validation_prompts_path": str(house / "bad.jsonl")},
        "did you mean 'batch_size'": {"batch_sise": 3},
        "batch_size is the text 'three'": {"batch_size": "three"},
        "max_budget_usd is -1": {"max_budget_usd": -1},
        "tokenizer": {"teacher_model_id": str(other), "teacher_system_prompt": None},
        "(64, 2)": {"student_adapter_path": str(wide)},
        "no model": {"base_model_path": "gpt-99"},
    }

    async def story(client: Client) -> None:
        for told, changes in bad.items():
            result = await client.call_tool("start_distillation", configuration(house, **changes))
            text = text_of(result)
            assert result.is_error and told.lower() in text.lower(), f"{told}: {text}"
            assert "Traceback" not in text and "pydantic" not in text
        assert data_of(await client.call_tool("list_runs", {}))["runs"] == []

    tell(house, story)
    assert sorted(str(path) for path in house.rglob("*")) == before
