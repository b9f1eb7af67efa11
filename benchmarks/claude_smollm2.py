"""Claude's part played by a script: probe, automatic run, second run and a small budget, on a real 135M student.

The teacher is a scripted endpoint on this machine (tests/endpoint.py), NOT Claude: it answers every request for a
reference with the prompt as JSON, and gives lessons and critiques in words. Everything else is real: the student
(SmolLM2-135M-Instruct from its pip package), the use cases, the workers, the client, the ledger at list prices.
Promises:

    auto     the probe finds that examples make the student better and that a lesson and a critique do not; the run
             picks accordingly and says why; held-out success goes from at most 10 % to at least 80 %, for cents
    again    an identical second run costs $0.00 and makes no call; nor does the probe by itself
    third    a run with a third of its estimate stops cleanly within its budget, with an adapter that can be used

Exit code 1 only when a promise is broken.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from opd_core.adapter_files import check_adapter_fits
from opd_core.config import RunConfig, parse_config
from opd_core.demo import demo_check, demo_files
from opd_core.paths import write_whole
from opd_core.settings import read_settings
from opd_core.state.rows import RunRow
from opd_core.types import END_STATES
from server.answers.budgets import dollars
from server.answers.probes import probed
from server.answers.status import run_status
from server.answers.words import percent
from server.commands.demo import DEMO_SETTINGS, MODEL_NAME
from server.commands.importing import EMBEDDED, import_model
from server.home_use_cases import HomeUseCases

if TYPE_CHECKING:
    from tests.endpoint import Endpoint

ROOT = Path(__file__).resolve().parent.parent
TEACHER = "claude-sonnet-5-5"
BUDGET_USD = 0.50
MOST_USD = 0.10
MAX_BEFORE, MIN_AFTER = 0.10, 0.80
PROBE_PROMPTS = 24
SECONDS_A_JOB = 1800.0
LESSON = (
    "Do not reply to the message and do not comment on it. Give the message back, word for word, as a JSON object with "
    "the single key text."
)
CRITIQUE = (
    "From its first word on the answer replies to the message. It should have begun with an opening brace and given "
    "the message back, unchanged, as a JSON object with the single key text, and then ended."
)


@dataclass
class Report:
    """What came of it: figures by part, and every promise that was broken."""

    teacher: str = "a scripted endpoint on this machine, not Claude"
    prices: str = f"list prices of {TEACHER}"
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def promise(self, kept: bool, words: str) -> None:
        """Note a promise that was not kept."""
        print(f"  {'kept' if kept else 'BROKEN'}: {words}", flush=True)
        if not kept:
            self.broken.append(words)


def load_endpoint() -> ModuleType:
    """The tests' endpoint, by its path: `tests` is no installed package."""
    spec = importlib.util.spec_from_file_location("scripted_endpoint", ROOT / "tests" / "endpoint.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def scripted_teacher() -> Iterator[Endpoint]:
    """The endpoint, answering by the rule of the embedded demo."""
    module = load_endpoint()

    def answer(params: dict[str, Any]) -> dict[str, Any]:
        kind, data = module.request_kind(params), module.request_data(params)
        if kind == "reference":
            text = json.dumps({"text": data["conversation"][-1]["content"]}, ensure_ascii=False)
            return {"reference": text}
        if kind == "lesson":
            return {"lesson": LESSON}
        if kind == "guidance":
            right = {"verdict": "correct", "score": 10, "critique": "", "minimal_edit": "", "lesson": ""}
            wrong = {"verdict": "wrong", "score": 0, "critique": CRITIQUE, "minimal_edit": "", "lesson": LESSON}
            return right if data["answer"].startswith('{"text"') else wrong
        return {"reason": "Nothing is asked of this judge.", "preferred": "neither"}

    with module.Endpoint(answer) as endpoint:
        yield endpoint


@dataclass
class Bench:
    """One home, its use cases and the bill of the endpoint."""

    cases: HomeUseCases
    endpoint: Endpoint
    report: Report

    def configuration(self, **changes: Any) -> RunConfig:
        """The demo's data and settings, taught by text alone."""
        home, files = self.cases.home.home, demo_files()
        fields: dict[str, Any] = {
            **DEMO_SETTINGS,
            "base_model_path": MODEL_NAME,
            "prompts_path": str(home / "demo" / files.train.name),
            "validation_prompts_path": str(home / "demo" / files.held_out.name),
            "check": demo_check(),
            "teacher_kind": "claude",
            "teacher_model_id": TEACHER,
            "teacher_rate_limit_tpm": 100_000_000,
            "max_budget_usd": BUDGET_USD,
            "probe_max_prompts": PROBE_PROMPTS,
            "acknowledge_teacher_terms": True,
        }
        return parse_config({**fields, **changes})

    def follow(self, row: RunRow) -> RunRow:
        """Wait for a job's end."""
        last, until = "", time.monotonic() + SECONDS_A_JOB
        while row.state not in END_STATES:
            if time.monotonic() > until:
                self.cases.stop(row.run_id, 30.0)
                raise SystemExit(f"{row.run_id} did not end in {SECONDS_A_JOB:.0f} seconds.")
            time.sleep(1.0)
            row = self.cases.status(row.run_id)
            words = run_status(row).summary
            if words != last:
                last = words
                print(f"    {words}", flush=True)
        if row.state == "failed":
            print("\n".join(row.last_log_lines), file=sys.stderr)
        return row

    def measured(self, name: str, row: RunRow, billed_before: int, calls_before: int, started: float) -> dict[str, Any]:
        """Figures of one part, with the endpoint's own bill beside the ledger."""
        figures: dict[str, Any] = {
            "run_id": row.run_id,
            "state": row.state,
            "end_reason": row.end_reason,
            "summary": run_status(row).summary,
            "step": row.step,
            "before": (row.baseline_eval or {}).get("task_score"),
            "best": (row.best_eval or {}).get("task_score"),
            "budget_usd": row.budget_usd,
            "spent_usd": row.spent_usd,
            "billed_usd": (self.endpoint.billed_pico - billed_before) / 1e12,
            "calls": len(self.endpoint.calls) - calls_before,
            "seconds": round(time.monotonic() - started, 1),
        }
        self.report.parts[name] = figures
        return figures

    def run(self, name: str, config: RunConfig, *, is_probe: bool = False) -> tuple[RunRow, dict[str, Any]]:
        """Start a job, follow it to its end and measure it."""
        print(f"{name}:", flush=True)
        before, calls, started = self.endpoint.billed_pico, len(self.endpoint.calls), time.monotonic()
        row = self.follow(self.cases.start_probe(config) if is_probe else self.cases.start(config))
        figures = self.measured(name, row, before, calls, started)
        # the ledger may know more than was billed (calls whose end nobody knows), never less
        self.report.promise(
            figures["billed_usd"] <= figures["spent_usd"] + 1e-12,
            f"{name}: the bill {dollars(figures['billed_usd'])} is in the ledger ({dollars(figures['spent_usd'])})",
        )
        return row, figures


def auto(bench: Bench) -> None:
    """The whole of it: probe, choice, training, for cents."""
    promise = bench.report.promise
    row, figures = bench.run("auto", bench.configuration())
    promise(row.state == "completed", f"the run completes ({row.state}: {row.message})")
    if row.result_path is None:
        promise(False, "the run says what its probe found")
        return
    found = json.loads(Path(row.result_path).read_text(encoding="utf-8"))
    figures |= {"method": found["method"], "guidance_level": found["guidance_level"], "probe": found["probe"]}
    judge_probe(bench.report, found["probe"])
    before, best = figures["before"], figures["best"]
    promise(before is not None and before <= MAX_BEFORE, f"success before: {percent(before)}, at most 10 %")
    promise(best is not None and best >= MIN_AFTER, f"success at best: {percent(best)}, at least 80 %")
    promise(figures["spent_usd"] <= MOST_USD, f"it cost {dollars(figures['spent_usd'])}, at most {dollars(MOST_USD)}")


def judge_probe(report: Report, found: dict[str, Any]) -> None:
    """Examples help this student, words do not."""
    levels = {level["level"]: level for level in found["levels"]}
    report.promise(levels["examples"]["verdict"] == "better", f"examples help: {told(levels['examples'])}")
    for name in ("lesson", "critique"):
        report.promise(levels[name]["verdict"] != "better", f"{name} does not: {told(levels[name])}")
    picked = levels.get(found["guidance_level"] or "", {})
    report.promise(
        found["method"] == "coach" and picked.get("verdict") == "better", f"the pick has a gap: {found['reason']}"
    )


def told(level: dict[str, Any]) -> str:
    """One level in words."""
    gap = level["gap"] or {}
    return (
        f"{percent(level['score_without'])} without, {percent(level['score_with'])} with, gap "
        f"{percent(gap.get('low'))} to {percent(gap.get('high'))}, {dollars(level['cost_usd'])} {level['note']}".strip()
    )


def again(bench: Bench) -> None:
    """The same run, and the probe by itself: everything is paid for."""
    promise = bench.report.promise
    row, figures = bench.run("again", bench.configuration())
    promise(
        figures["spent_usd"] == 0.0 and figures["calls"] == 0, f"the second run cost {dollars(figures['spent_usd'])}"
    )
    best = bench.report.parts["auto"]["best"]
    promise(row.state == "completed" and figures["best"] == best, f"and came to the same: {percent(figures['best'])}")

    row, figures = bench.run("probe", bench.configuration(), is_probe=True)
    if row.state == "completed":
        answer = probed(row, bench.cases.probe_result(row.run_id), 0.0)
        figures |= {"summary": answer.summary, "method": answer.method, "guidance_level": answer.guidance_level}
        print(f"  {answer.summary}")
    promise(row.state == "completed" and figures["calls"] == 0, "the probe by itself buys nothing again")


def third(bench: Bench) -> None:
    """A third of the estimate: a clean stop. A template of its own, so that nothing is paid for already."""
    changes = {"method": "sft", "guidance_level": "reference", "num_training_steps": 20, "eval_every_steps": 5}
    changes |= {"teacher_template": "You write the answers that a small language model learns from."}
    estimate = bench.cases.estimate(bench.configuration(**changes))
    budget = round(estimate.cost_usd / 3, 6)
    print(f"The estimate of this run is {dollars(estimate.cost_usd)}; it gets {dollars(budget)}.")
    row, figures = bench.run("third", bench.configuration(**changes, max_budget_usd=budget))
    figures["estimate_usd"] = estimate.cost_usd
    status = run_status(row)
    print(f"  {status.summary}\n  {status.next_step}")
    promise = bench.report.promise
    promise(row.state == "stopped" and row.end_reason == "budget", f"it stops for its budget ({row.state})")
    share = 100 * figures["spent_usd"] / budget
    promise(figures["spent_usd"] <= budget, f"{share:.2f} % of the budget were spent")
    promise("larger max_budget_usd" in status.next_step, "it says how to go on")
    promise(has_adapter(bench, row), f"its adapter fits the base: {row.final_adapter_path}")


def has_adapter(bench: Bench, row: RunRow) -> bool:
    """Whether the adapter that was kept can be used."""
    if row.final_adapter_path is None:
        return False
    check_adapter_fits(Path(row.final_adapter_path), bench.cases.home.models / MODEL_NAME)
    return True


def table(report: Report) -> str:
    """The parts side by side."""
    lines = [f"{'part':8}{'before':>9}{'best':>9}{'calls':>7}{'spent':>10}{'billed':>10}{'seconds':>9}  end"]
    for name, part in report.parts.items():
        end = f"{part['state']}, {part['end_reason']}, step {part['step']}"
        lines.append(
            f"{name:8}{_cell(part['before']):>9}{_cell(part['best']):>9}{part['calls']:>7}"
            f"{dollars(part['spent_usd']):>10}{dollars(part['billed_usd']):>10}{part['seconds']:>9}  {end}"
        )
    return "\n".join(lines)


def _cell(share: float | None) -> str:
    return "" if share is None else percent(share)


def prepare(home: Path, url: str) -> HomeUseCases:
    """Home, model and prompts; the address of the teacher stands in the file that only a person writes."""
    os.environ.update({"OPD_HOME": str(home), "ANTHROPIC_API_KEY": "a-key-of-nobody"})
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    home.mkdir(parents=True, exist_ok=True)
    (home / "settings.toml").write_text(f'teacher_base_url = "{url}"\n', encoding="utf-8")
    settings = read_settings()
    assert not settings.problems, settings.problems
    settings.home.prepare()
    folder = settings.home.models / MODEL_NAME
    if not (folder / "config.json").is_file():
        print(f"Importing {MODEL_NAME} …", flush=True)
        import_model(EMBEDDED, folder, "float32")
    for source in (demo_files().train, demo_files().held_out):
        write_whole(settings.home.home / "demo" / source.name, source.read_text(encoding="utf-8"))
    return HomeUseCases(settings)


def main() -> int:
    """Run all parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="a home to work in; a new folder, or nothing in it is paid for again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--only", choices=("auto", "third"), help="one part (auto: with its second run)")
    options = parser.parse_args()
    report = Report()
    print(f"The teacher is {report.teacher}; dollars are {report.prices}.")
    with tempfile.TemporaryDirectory() as scratch, scripted_teacher() as endpoint:
        bench = Bench(prepare((options.home or Path(scratch)).absolute(), endpoint.url), endpoint, report)
        if options.only in (None, "auto"):
            auto(bench)
            again(bench)
        if options.only in (None, "third"):
            third(bench)
    print(f"\n{table(report)}\nThe teacher was {report.teacher}.")
    print("All promises are kept." if not report.broken else f"Broken: {'; '.join(report.broken)}")
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False), encoding="utf-8")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
