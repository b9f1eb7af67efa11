"""`opd demo`: a whole distillation, driven over MCP exactly as an AI assistant drives it.

It imports a small model once, starts `opd serve` as a host does, calls the tools in the order the server asks for, and
shows what came of it. Every figure it prints is an answer of those tools.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from dataclasses import dataclass
from typing import Any

import anyio
from mcp.client import Client
from mcp_types import TextContent
from rich.console import Console

from opd_core.control.machine import guess_device
from opd_core.demo import demo_check, demo_files, demo_teacher
from opd_core.paths import HomePaths, write_whole
from opd_core.types import END_STATES
from server.commands.demo_report import closing_words, comparison_table, goals_line, sample_lines
from server.commands.doctor import server_parameters
from server.commands.importing import EMBEDDED, import_model
from server.commands.terminal import RunView
from server.schemas.jobs import CompareAnswer
from server.schemas.runs import RunStatus
from server.settings import Settings, read_settings

MODEL_NAME = "SmolLM2-135M-Instruct"
DEMO_SETTINGS: dict[str, Any] = {
    "num_training_steps": 20,
    "batch_size": 4,
    "num_rollouts_per_prompt": 2,
    "rollout_max_tokens": 24,
    "learning_rate": 1e-3,
    "lora_rank": 8,
    "lora_scale": 2.0,
    "kl_schedule": "constant",
    # Reverse KL alone settles for a bare echo: the student practically never begins with a brace (sft_targets.py).
    "use_sft_mixup": True,
    "sft_weight": 0.3,
    "eval_every_steps": 10,
    "checkpoint_every_steps": 10,
}
WAIT_SECONDS = 10


class ToolRefusedError(Exception):
    """A tool answered with an error; its text is for the person."""


def run_demo(console: Console | None = None) -> int:
    """Run the demo; 0 when the run completed, 1 when it ended otherwise, 130 when the person left.

    Raises:
        OPDError: the home cannot be used, or the demo's model cannot be imported.
    """
    # in a pipe or a log there is no width to keep to, and the table reads better unbroken
    console = console or Console(width=None if sys.stdout.isatty() else 110)
    demo = Demo(RunView(console), read_settings())
    try:
        demo.prepare()
        return anyio.run(demo.drive)
    except KeyboardInterrupt:
        demo.say_goodbye()
        return 130


@dataclass
class Demo:
    """One demo: where it prints, and the run it has started."""

    view: RunView
    settings: Settings
    run_id: str | None = None

    @property
    def home(self) -> HomePaths:
        """Where the demo's model, prompts and run lie."""
        return self.settings.home

    def prepare(self) -> None:
        """Make the home, the model folder and the prompt files that are not there yet."""
        self.home.prepare()
        self.view.say(f"OPD_HOME is {self.home.home}")
        folder = self.home.models / MODEL_NAME
        if not (folder / "config.json").is_file():
            self.view.say(f"Importing {MODEL_NAME} from its GGUF, once …")
            import_model(EMBEDDED, folder, "float32" if guess_device() == "cpu" else "float16")
        files = demo_files()
        for source in (files.train, files.held_out):
            # a copy: the package may lie outside the folders that the server reads from
            write_whole(self.home.home / "demo" / source.name, source.read_text(encoding="utf-8"))

    def configuration(self) -> dict[str, Any]:
        """The arguments of `start_distillation`: the base model teaches itself, with instructions only it sees."""
        system_prompt, examples = demo_teacher()
        files = demo_files()
        return {
            "base_model_path": MODEL_NAME,
            "prompts_path": str(self.home.home / "demo" / files.train.name),
            "validation_prompts_path": str(self.home.home / "demo" / files.held_out.name),
            "teacher_system_prompt": system_prompt,
            "teacher_examples": examples,
            "check": demo_check(),
            "session_id": "demo",
            **DEMO_SETTINGS,
        }

    async def drive(self) -> int:
        """Talk to a server of our own over stdio, as a host does."""
        self.view.say("Starting `opd serve` and calling its tools over MCP.")
        async with Client(server_parameters(self.settings, dict(os.environ))) as client:
            try:
                return await self._tell(client)
            except ToolRefusedError as error:
                self.view.say(str(error))
                return 1

    async def _tell(self, client: Client) -> int:
        setup = await self._call(client, "check_setup")
        self.view.say(f"check_setup: {setup['summary']}")
        for problem in setup["problems"]:
            self.view.say(f"  problem: {problem['what']} {problem['fix']}")
        configuration = self.configuration()
        estimate = await self._call(client, "estimate_cost", configuration)
        self.view.say(f"estimate_cost: {estimate['summary']}")
        request = {**configuration, "client_request_id": f"demo-{secrets.token_hex(8)}"}
        started = await self._call(client, "start_distillation", request)
        self.run_id = str(started["run_id"])
        self.view.say(f"start_distillation: {started['summary']}")

        began = time.monotonic()
        status = await self._follow(client)
        self.view.say(f"wait_for_run: {status.summary} It took {time.monotonic() - began:.0f} seconds.")
        if status.state != "completed" or status.final_adapter_path is None:
            self.view.say(status.next_step)
            return 1
        comparison = await self._compare(client)
        self._conclude(comparison, status.final_adapter_path)
        return 0 if comparison.status == "completed" else 1

    async def _follow(self, client: Client) -> RunStatus:
        """Wait for the run, again and again, drawing what comes."""

        async def progress(step: float, total: float | None, text: str | None) -> None:
            words = (text or "").partition(", ")[2]  # the step is shown by the view itself
            self.view.advance(step, total or 0, words)

        with self.view:
            while True:
                arguments = {"run_id": self.run_id, "timeout_seconds": WAIT_SECONDS}
                status = RunStatus.model_validate(await self._call(client, "wait_for_run", arguments, progress))
                self.view.show(status)
                if status.state in END_STATES:
                    return status

    async def _compare(self, client: Client) -> CompareAnswer:
        self.view.say("compare_adapters: base and distilled adapter on the same held-out prompts …")
        arguments: dict[str, Any] = {"run_id": self.run_id}
        while True:
            answer = CompareAnswer.model_validate(await self._call(client, "compare_adapters", arguments))
            if answer.status != "pending":
                return answer
            arguments = {"job_id": answer.job_id}

    def _conclude(self, comparison: CompareAnswer, adapter_path: str) -> None:
        if comparison.status != "completed":
            self.view.say(f"{comparison.summary} {comparison.next_step}")
            return
        self.view.console.print(comparison_table(comparison))
        for line in (
            *sample_lines(comparison),
            comparison.summary,
            goals_line(comparison),
            *closing_words(comparison, self.home.models / MODEL_NAME, adapter_path),
        ):
            self.view.say(line)

    def say_goodbye(self) -> None:
        """After Ctrl-C: what goes on, and how to see it."""
        if self.run_id is None:
            self.view.say("Stopped before a run was started.")
        else:
            self.view.say(f"The run goes on in the background. See it with: opd status {self.run_id}")

    async def _call(
        self, client: Client, tool: str, arguments: dict[str, Any] | None = None, progress: Any = None
    ) -> dict[str, Any]:
        result = await client.call_tool(tool, arguments or {}, progress_callback=progress)
        if result.is_error or not isinstance(result.structured_content, dict):
            text = " ".join(block.text for block in result.content if isinstance(block, TextContent))
            raise ToolRefusedError(f"{tool} refused: {text}")
        return result.structured_content
