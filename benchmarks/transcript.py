"""What people ask an assistant, as the tool calls it would make and the texts that come back.

A real server over stdio, a real client, real workers, a tiny real model; Claude is a scripted endpoint on this machine
(tests/endpoint.py). Of each answer that the next step or the reply to the user depends on, the facts are looked for in
the text and in the structured content, since some hosts show the model only one of the two.

    python -m benchmarks.transcript [--only N ...]

Read it as an assistant would: what would you not know? Exit code 1 when a request could not be answered.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from mcp import StdioServerParameters
from mcp.client import Client
from mcp_types import CallToolResult

ROOT = Path(__file__).resolve().parent.parent
MOST_SECONDS = 420.0
MOST_SHOWN = 1800
JSON = dict[str, Any]


@dataclass
class Answer:
    """What came back from one call."""

    tool: str
    text: str
    data: JSON
    is_error: bool


@dataclass
class Talk:
    """One conversation: calls, prints, and remembers what later requests speak of.

    Attributes:
        known: ids and paths by a name of our own, as an assistant remembers them.
        missing: every fact that an answer should have held and did not.
    """

    client: Client
    home: Path
    known: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    request: str = ""

    async def call(self, tool: str, **arguments: Any) -> Answer:
        """One tool call, printed with the text that came back."""
        result = await self.client.call_tool(tool, arguments)
        answer = Answer(tool, _text(result), result.structured_content or {}, bool(result.is_error))
        shown = json.dumps(arguments, ensure_ascii=False)
        print(f"\n  {tool} {shown}\n    " + _indented(("ERROR " if answer.is_error else "") + answer.text), flush=True)
        return answer

    async def wait(self, run_id: str) -> Answer:
        """As an assistant waits: again and again until the run has ended."""
        while True:
            answer = await self.call("wait_for_run", run_id=run_id, timeout_seconds=50)
            if answer.is_error or not answer.data["timed_out"]:
                return answer

    async def job(self, tool: str, **arguments: Any) -> Answer:
        """The result of a job's tool, fetched by its id where the first wait was too short."""
        answer = await self.call(tool, **arguments, timeout_seconds=50)
        while not answer.is_error and answer.data["status"] == "pending":
            answer = await self.call(tool, job_id=answer.data["job_id"], timeout_seconds=50)
        return answer

    def needs(self, answer: Answer, *facts: str, error: bool = False) -> None:
        """Note each fact (a regular expression) that the text, or the structured content, lacks."""
        if answer.is_error != error:
            self._miss(answer, "an error" if error else "no error")
        forms = {"text": answer.text}
        if not answer.is_error and answer.data:
            forms["structured content"] = json.dumps(answer.data, ensure_ascii=False)
        for fact in facts:
            for name, form in forms.items():
                if not re.search(fact, form, re.IGNORECASE):
                    self._miss(answer, f"{fact!r} in its {name}")

    def needs_text(self, answer: Answer, *facts: str) -> None:
        """The same of the text alone: what it words, the structured content has as values."""
        for fact in facts:
            if not re.search(fact, answer.text, re.IGNORECASE):
                self._miss(answer, f"{fact!r} in its text")

    def _miss(self, answer: Answer, what: str) -> None:
        self.missing.append(f"{self.request}: {answer.tool} has not {what}")
        print(f"    !! {self.missing[-1]}", flush=True)

    def config(self, **changes: Any) -> JSON:
        """A cheap run on the user's file."""
        given: JSON = {
            "base_model_path": "student",
            "teacher_model_id": "larger",
            "validation_prompts_path": str(self.home / "prompts.jsonl"),
            "num_training_steps": 6,
            "batch_size": 2,
            "num_rollouts_per_prompt": 2,
            "rollout_max_tokens": 12,
            "eval_every_steps": 3,
            "learning_rate": 5e-3,
            "lora_rank": 4,
            "kl_schedule": "constant",
            **changes,
        }
        return {name: value for name, value in given.items() if value is not None}

    def paid(self, **changes: Any) -> JSON:
        """The same with Claude."""
        paid = {"teacher_kind": "claude", "teacher_model_id": None, "method": "sft", "teacher_rate_limit_tpm": 10**8}
        return self.config(**{**paid, "rollout_max_tokens": 64, "eval_every_steps": 1, **changes})


Story = Callable[[Talk], Awaitable[None]]
STORIES: list[tuple[str, Story]] = []


def request(words: str) -> Callable[[Story], Story]:
    """Enter one request of a user."""

    def enter(story: Story) -> Story:
        STORIES.append((words, story))
        return story

    return enter


@request("Can this machine do it, and what do I have here?")
async def _setup(talk: Talk) -> None:
    talk.needs(await talk.call("check_setup"), "can start a run", "inspect_prompts|list_models")
    talk.needs(await talk.call("list_models"), "student", "larger", "estimate_cost|inspect_prompts")


@request("What can go wrong with my prompts file?")
async def _prompts(talk: Talk) -> None:
    bad = await talk.call("inspect_prompts", validation_prompts_path=str(talk.home / "broken.jsonl"))
    talk.needs(bad, r"line 3|\"line\": 3", r"line 5|\"line\": 5", "broken.jsonl")
    talk.needs_text(bad, "refuse|mend|correct")
    good = await talk.call("inspect_prompts", validation_prompts_path=str(talk.home / "prompts.jsonl"))
    talk.needs(good, "held.out", "token", "check")
    talk.needs_text(good, "estimate_cost")


@request("What would a run on it take?")
async def _estimate(talk: Talk) -> None:
    answer = await talk.call("estimate_cost", **talk.config())
    talk.needs(answer, "minute|second", "memory", "held.out", "start_distillation", r"\$0|free|nothing|costs no")


@request("Start a cheap run on this file and tell me when it is done.")
async def _start(talk: Talk) -> None:
    answer = await talk.call("start_distillation", **talk.config(client_request_id="first", session_id="tone"))
    talk.needs(answer, "run_id|opd_", "wait_for_run")
    talk.known["first"] = answer.data["run_id"]
    done = await talk.wait(talk.known["first"])
    talk.needs(done, "completed", "step", "compare_adapters", re.escape(talk.known["first"]))
    talk.known["first adapter"] = done.data["final_adapter_path"]


@request("Did it help?")
async def _compare(talk: Talk) -> None:
    answer = await talk.job("compare_adapters", run_id=talk.known["first"])
    talk.needs(answer, "better|worse|no difference", "distilled", "base", "held.out")
    talk.needs_text(answer, r"\d to [\d.−-]+")


@request("Where is my new model, and how do I use it?")
async def _where(talk: Talk) -> None:
    answer = await talk.call("get_status", run_id=talk.known["first"])
    talk.needs(answer, re.escape(talk.known["first adapter"]), "base_model_path", "student")
    talk.needs_text(answer, "--adapter-path")


@request("Do it once more with a tenth of the learning rate, and keep the two together.")
async def _again(talk: Talk) -> None:
    seen = await talk.call("list_runs", session_id="tone")
    talk.needs(seen, re.escape(talk.known["first"]), "learning_rate", "0.005", "tone")
    answer = await talk.call("start_distillation", **talk.config(learning_rate=5e-4, session_id="tone"))
    talk.known["second"] = answer.data["run_id"]
    done = await talk.wait(talk.known["second"])
    talk.needs(done, "completed")
    talk.known["second adapter"] = done.data["final_adapter_path"]


@request("Which of the two is better?")
async def _which(talk: Talk) -> None:
    candidates = [
        {"name": "base"},
        {"name": "fast", "adapter_path": talk.known["first adapter"]},
        {"name": "slow", "adapter_path": talk.known["second adapter"]},
    ]
    answer = await talk.job("compare_adapters", run_id=talk.known["first"], candidates=candidates)
    talk.needs(answer, "fast", "slow", "reverse.kl", "better|worse|no difference", "those two alone")
    answer = await talk.job("compare_adapters", run_id=talk.known["first"], candidates=candidates[1:])
    talk.needs(answer, "than fast|fast has", "slow")


@request("Why is the second one bad?")
async def _why(talk: Talk) -> None:
    answer = await talk.call("diagnose_run", run_id=talk.known["second"])
    talk.needs(answer, re.escape(talk.known["second"]), "verdict|finding|held.out")
    talk.needs_text(answer, "Next: ")
    talk.needs(await talk.call("get_metrics", run_id=talk.known["second"], series="eval"), "reverse.kl", "step")


@request("Show me both curves.")
async def _curves(talk: Talk) -> None:
    runs = [talk.known["first"], talk.known["second"]]
    answer = await talk.call("plot_metrics", run_ids=runs, keys=["kl_divergence_mean"])
    talk.needs_text(answer, *map(re.escape, runs), "kl_divergence_mean", "[▁▂▃▄▅▆▇█]")


@request("Start a long one. No, stop it. Now go on, but only to step 40.")
async def _stop_and_go(talk: Talk) -> None:
    started = await talk.call("start_distillation", **talk.config(num_training_steps=20_000, checkpoint_every_steps=1))
    run_id = started.data["run_id"]
    while (await _quietly(talk, "get_status", run_id=run_id))["metrics"]["step"] < 2:
        await anyio.lowlevel.checkpoint()
    queued = await talk.call("start_distillation", **talk.config())
    talk.needs(queued, "queue", run_id if "run_id" not in queued.data else re.escape(queued.data["run_id"]))
    talk.needs(await talk.call("stop_distillation", run_id=queued.data["run_id"]), "stopped")
    stopped = await talk.call("stop_distillation", run_id=run_id, timeout_seconds=30)
    talk.needs(stopped, "stopped", "checkpoint", "resume_distillation")
    shorter = await talk.call("resume_distillation", run_id=run_id, num_training_steps=40)
    talk.needs(shorter, "20000", "stop_distillation", error=True)
    resumed = await talk.call("resume_distillation", run_id=run_id)
    talk.needs(resumed, "goes on from step", "wait_for_run", re.escape(run_id))
    talk.needs(await talk.call("stop_distillation", run_id=run_id, timeout_seconds=30), "stopped", "by.user")


@request("The first one was good: train it longer.")
async def _longer(talk: Talk) -> None:
    refused = await talk.call("resume_distillation", run_id=talk.known["first"], num_training_steps=20)
    talk.needs(refused, "completed", "student_adapter_path", re.escape(talk.known["first adapter"]), error=True)


@request("How much would it cost with Claude?")
async def _claude_price(talk: Talk) -> None:
    answer = await talk.call("estimate_cost", **talk.paid(max_budget_usd=1.0, acknowledge_teacher_terms=True))
    talk.needs(answer, r"expected|pays_usd", r"worst|at_most", "claude-sonnet", "budget")
    bare = await talk.call("estimate_cost", **talk.paid())
    talk.needs(bare, "max_budget_usd", "ask how many dollars")


@request("Then do it with Claude.")
async def _claude_start(talk: Talk) -> None:
    nothing_said = await talk.call("start_distillation", **talk.paid())
    talk.needs(nothing_said, "budget", "ask the user", error=True)
    no_terms = await talk.call("start_distillation", **talk.paid(max_budget_usd=5.0))
    talk.needs(no_terms, "terms", "user", error=True)
    unconfirmed = await talk.call("start_distillation", **talk.paid(max_budget_usd=5.0, acknowledge_teacher_terms=True))
    talk.needs(unconfirmed, r"\$5\.00", "confirmed", "nothing was started", error=True)
    cheap = talk.paid(max_budget_usd=0.035, acknowledge_teacher_terms=True, client_request_id="paid")
    answer = await talk.call("start_distillation", **cheap)
    talk.known["paid"] = answer.data["run_id"]
    done = await talk.wait(talk.known["paid"])
    talk.needs(done, "stopped", "budget", "resume_distillation", r"0\.03")
    talk.needs_text(done, r"\$0\.03")


@request("Go on with two more dollars.")
async def _two_dollars(talk: Talk) -> None:
    status = await talk.call("get_status", run_id=talk.known["paid"])
    more = status.data["budget"]["limit_usd"] + 2.0
    asked = await talk.call("resume_distillation", run_id=talk.known["paid"], max_budget_usd=more)
    talk.needs(asked, r"\$2\.03", "confirmed true", error=True)
    await talk.call("resume_distillation", run_id=talk.known["paid"], max_budget_usd=more, confirmed=True)
    done = await talk.wait(talk.known["paid"])
    talk.needs(done, "completed", r"2\.035")


@request("My Claude run ended at once. What happened?")
async def _failed(talk: Talk) -> None:
    (talk.home / "refuse").touch()
    changes = {"max_budget_usd": 0.5, "acknowledge_teacher_terms": True, "seed": 7}
    answer = await talk.call("start_distillation", **talk.paid(**changes))
    done = await talk.wait(answer.data["run_id"])
    talk.needs(done, "failed", "key", "OPD_HOME/.env", "resume_distillation")
    diagnosis = await talk.call("diagnose_run", run_id=answer.data["run_id"])
    talk.needs(diagnosis, "key")
    talk.needs(await talk.call("read_log", run_id=answer.data["run_id"]), "key")
    (talk.home / "refuse").unlink()


@request("Use the prompts on my desktop and the model gpt-99.")
async def _wrong_paths(talk: Talk) -> None:
    wrong = str(talk.home / "prompts.json")
    talk.needs(await talk.call("inspect_prompts", validation_prompts_path=wrong), "prompts.json", error=True)
    gone = await talk.call("estimate_cost", **talk.config(validation_prompts_path=str(talk.home / "promps.jsonl")))
    talk.needs(gone, "promps.jsonl", "does not exist", "'prompts.jsonl'", error=True)
    outside = await talk.call("estimate_cost", **talk.config(validation_prompts_path="/etc/passwd"))
    talk.needs(outside, "OPD_ROOTS|outside", error=True)
    relative = await talk.call("estimate_cost", **talk.config(validation_prompts_path="prompts.jsonl"))
    talk.needs_text(relative, "prompts.jsonl")
    talk.needs(
        await talk.call("estimate_cost", **talk.config(base_model_path="gpt-99")),
        "Models here: larger, student",
        error=True,
    )


@request("(An assistant that misremembers the arguments.)")
async def _typos(talk: Talk) -> None:
    typo = await talk.call("start_distillation", **talk.config(batch_sise=3, num_training_steps="many"))
    talk.needs(typo, "batch_size", "num_training_steps", "nothing was started", error=True)
    talk.needs(await talk.call("get_status", id="x"), "run_id", error=True)
    talk.needs(await talk.call("get_metrics", series="validation"), "train", "eval", error=True)
    talk.needs(await talk.call("plot_metrics", keys=["loss"]), "kl_loss|total_loss", error=True)


@request("How is run opd doing? And the one of last week?")
async def _ambiguous(talk: Talk) -> None:
    ambiguous = await talk.call("get_status", run_id="opd_")
    talk.needs(ambiguous, re.escape(talk.known["first"]), "opd_", error=True)
    unknown = await talk.call("get_status", run_id="opd_20200101_000000")
    talk.needs(unknown, "list_runs|known|latest", error=True)
    listed = await talk.call("list_runs", limit=5)
    talk.needs(listed, "completed", "next_cursor|cursor|older")


@request("Write something about it that I can send to a colleague.")
async def _report(talk: Talk) -> None:
    answer = await talk.call("export_report", run_id=talk.known["first"])
    talk.needs(answer, r"\.html", r"\.md", re.escape(talk.known["first"]))


@request("Would Claude's guidance help my model at all?")
async def _probe(talk: Talk) -> None:
    arguments = talk.paid(max_budget_usd=1.0, acknowledge_teacher_terms=True, method="auto", probe_max_prompts=4)
    answer = await talk.job("probe_teacher", **arguments)
    talk.needs(answer, "examples", "lesson", "critique", "reference", "contrast|coach")
    talk.needs_text(answer, r"\$", "start_distillation")


async def _quietly(talk: Talk, tool: str, **arguments: Any) -> JSON:
    result = await talk.client.call_tool(tool, arguments)
    data: JSON | None = result.structured_content
    assert data is not None, _text(result)
    return data


def _text(result: CallToolResult) -> str:
    return "\n".join(block.text if block.type == "text" else f"[{block.type}]" for block in result.content)


def _indented(text: str) -> str:
    shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} …"
    return shown.replace("\n", "\n    ")


def write_home(home: Path) -> None:
    """What the user has: a student, a larger model of the same tokenizer, a good and a broken prompt file."""
    from tests.tiny import write_tiny_model

    write_tiny_model(home / "models" / "student")
    write_tiny_model(home / "models" / "larger", seed=5, gain=4.0)
    prompts = [json.dumps({"prompt": f"Say number {number}.", "reference": f"{number}"}) for number in range(40)]
    (home / "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")
    broken = ['{"prompt": "a"}', '{"prompt": "a"}', '{"prompt": ', '{"prompt": "b"}', '{"question": "c"}']
    (home / "broken.jsonl").write_text("\n".join(broken), encoding="utf-8")


@contextmanager
def scripted_claude(home: Path) -> Iterator[str]:
    """The endpoint's address; it refuses the key while `home` has a file `refuse`."""
    from tests.endpoint import Endpoint, Reply, error, obliging

    def answer(params: JSON) -> Reply | str | JSON:
        if (home / "refuse").exists():
            return error(401, "authentication_error", "invalid x-api-key")
        return obliging(params)

    with Endpoint(answer) as endpoint:
        yield endpoint.url


def tell(home: Path, only: Sequence[int] = ()) -> list[str]:
    """Have the whole conversation with a fresh server of a home; returns what was missing in it.

    Args:
        only: numbers of requests from 1; left out: all. Some speak of runs that earlier ones made.
    """
    with scripted_claude(home) as url:
        write_home(home)
        (home / "settings.toml").write_text(f'teacher_base_url = "{url}"\n', encoding="utf-8")
        environment = {"OPD_HOME": str(home), "ANTHROPIC_API_KEY": "sk-ant-scripted-0123456789", "PATH": os.defpath}
        server = StdioServerParameters(
            command=sys.executable, args=["-P", "-m", "server.cli", "serve"], env=environment
        )
        missing: list[str] = []

        async def go() -> None:
            with anyio.fail_after(MOST_SECONDS):
                async with Client(server) as client:
                    talk = Talk(client, home, missing=missing)
                    for number, (words, story) in enumerate(STORIES, start=1):
                        if not only or number in only:
                            talk.request = f"{number}. {words}"
                            print(f"\n{talk.request}", flush=True)
                            await story(talk)

        anyio.run(go)
        return missing


def main() -> int:
    """Print the transcript."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--only", type=int, nargs="*", default=[], metavar="N", help="these requests alone")
    chosen = options.parse_args().only
    sys.path.insert(0, str(ROOT))  # `tests` is no installed package
    with tempfile.TemporaryDirectory(prefix="opd_transcript_") as folder:
        missing = tell(Path(folder) / "home", chosen)
    print("\n" + ("\n".join(["Missing:", *missing]) if missing else "Nothing was missing."))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
