"""Runs with a paid teacher, whole: the use cases, a real worker process, a tiny model, the scripted endpoint's bill."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opd_core.adapter_files import read_adapter
from opd_core.comparison import Candidate, ComparisonSpec
from opd_core.config import RunConfig, parse_config
from opd_core.control.estimate.estimating import estimate
from opd_core.control.processes import try_lock
from opd_core.control.runs import Runs
from opd_core.control.supervisor import Supervisor
from opd_core.money.amounts import pico_from_usd, usd_from_pico
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.settings import read_settings
from opd_core.state.jsonl import JsonlFile
from opd_core.state.rows import RunRow
from opd_core.state.store import RunStore
from opd_core.types import END_STATES
from tests.endpoint import PRICES, Endpoint, JsonObject, Reply, error, obliging, request_kind
from tests.tiny import write_tiny_model
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
CANARY = "sk-ant-canary-9f8e7d6c5b4a"
ROOT = Path(__file__).parents[2]
COMMAND = (
    *(sys.executable, "-P", "-c"),
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from opd_core.worker import main; sys.exit(main())",
)


def answer(params: JsonObject) -> JsonObject:
    """References short enough for the tiny student."""
    return {"reference": "Yes."} if request_kind(params) == "reference" else obliging(params)


class House:
    """A home with a tiny model, prompts and a teacher that is the endpoint."""

    def __init__(self, home: HomePaths, endpoint: Endpoint) -> None:
        self.home, self.endpoint = home, endpoint
        home.prepare()
        write_tiny_model(home.models / "tiny")
        prompts = [json.dumps({"prompt": f"Say number {number}."}) for number in range(16)]
        (home.home / "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")
        (home.home / "settings.toml").write_text(f'teacher_base_url = "{endpoint.url}"\n', encoding="utf-8")
        self.store = RunStore(home.database)
        settings = read_settings(home=home.home)
        assert settings.problems == ()
        self.ledger = Ledger(home.database, month_limit_pico=pico_from_usd(settings.monthly_budget_usd))
        self.runs = Runs(settings, Roots.of(home.home), supervisor=Supervisor(home, self.store, COMMAND))

    def config(self, **changes: Any) -> RunConfig:
        fields: dict[str, Any] = {
            "base_model_path": "tiny",
            "prompts_path": str(self.home.home / "prompts.jsonl"),
            "teacher_kind": "claude",
            "method": "contrast",
            "acknowledge_teacher_terms": True,
            "max_budget_usd": 1.0,
            "num_training_steps": 3,
            "batch_size": 2,
            "num_rollouts_per_prompt": 1,
            "rollout_max_tokens": 8,
            "eval_every_steps": 2,
            "checkpoint_every_steps": 1,
            "lora_rank": 2,
            "teacher_rate_limit_tpm": 10_000_000,
        }
        return parse_config({**fields, **changes})

    def ended(self, row: RunRow) -> RunRow:
        wait_until(lambda: self.store.get(row.run_id).state in END_STATES, 60)
        return self.runs.status(row.run_id)

    def run(self, **changes: Any) -> RunRow:
        return self.ended(self.runs.start(self.config(**changes)))

    def holds(self, text: str) -> list[str]:
        """The files of the home in which a text stands."""
        files = [path for path in self.home.home.rglob("*") if path.is_file()]
        return [str(path) for path in files if text.encode() in path.read_bytes()]


@pytest.fixture
def house(home: HomePaths, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)
    with Endpoint(answer) as endpoint:
        yield House(home, endpoint)


def log_of(house: House, row: RunRow) -> str:
    return house.home.log(row.run_id).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "method",
    [
        {"method": "contrast"},
        {"method": "sft"},
        {"method": "coach", "guidance_level": "examples"},
        {"method": "coach", "guidance_level": "critique"},
    ],
    ids=lambda method: "-".join(method.values()),
)
def test_a_run_completes_spends_what_the_bill_says_and_costs_nothing_the_second_time(
    house: House, method: dict[str, str]
) -> None:
    row = house.run(**method)
    assert row.state == "completed", log_of(house, row)
    billed = house.endpoint.billed_pico
    assert house.ledger.totals(row.run_id).spent_pico == billed > 0
    assert (row.spent_usd, row.reserved_usd, row.budget_usd) == (usd_from_pico(billed), 0.0, 1.0)
    assert row.latest_metrics is not None
    assert row.latest_metrics["cumulative_cost_usd"] == pytest.approx(usd_from_pico(billed))
    assert row.latest_metrics["teacher_api_calls"] == len(house.endpoint.calls)
    texts = list(JsonlFile(house.home.completions(row.run_id)).read())
    assert sum(text["cost_pico"] for text in texts) == billed

    again = house.run(**method)
    assert again.state == "completed", log_of(house, again)
    assert again.spent_usd == 0.0 and house.endpoint.billed_pico == billed
    assert house.ledger.totals(again.run_id).calls == 0
    assert house.holds(CANARY) == []


def test_a_run_with_a_third_of_its_budget_stops_cleanly_with_a_usable_adapter(house: House) -> None:
    # a check and one rollout's guidance a step: the adapter of the baseline stands before the first call
    whole = {"method": "sft", "check": {"kind": "regex", "pattern": "Yes"}, "num_training_steps": 6}
    row = house.run(**whole)
    assert row.state == "completed", log_of(house, row)
    third = house.endpoint.billed_pico / 3
    # the shared cache would answer everything: other templates make other requests
    third_usd = max(third, 1.2 * largest_reservation(house, row.run_id)) / 10**12
    row = house.run(**whole, teacher_template="Be kind.", max_budget_usd=third_usd)
    totals = house.ledger.totals(row.run_id)
    assert (row.state, row.end_reason) == ("stopped", "budget"), log_of(house, row)
    assert totals.spent_pico + totals.reserved_pico <= totals.limit_pico and totals.reserved_pico == 0
    assert row.budget_exceeded and "max_budget_usd" in row.message
    assert row.final_adapter_path is not None and read_adapter(Path(row.final_adapter_path)).rank == 2
    assert house.holds(CANARY) == []

    resumed = house.ended(house.runs.resume(row.run_id, max_budget_usd=0.9, confirmed=True))
    assert (resumed.state, resumed.step) == ("completed", 6), log_of(house, resumed)
    assert (resumed.budget_usd, resumed.budget_exceeded) == (0.9, False)


def largest_reservation(house: House, run_id: str) -> int:
    """The most that one call of a run held."""
    records = house.store._database.read("SELECT MAX(reserved_pico) AS most FROM calls WHERE run_id = ?", (run_id,))
    return int(records[0]["most"])


def test_auto_probes_first_and_writes_down_why_it_chose(house: House) -> None:
    row = house.run(method="auto", check={"kind": "regex", "pattern": "Yes"}, num_training_steps=1)
    assert row.state == "completed", log_of(house, row)
    assert row.result_path is not None
    result = json.loads(Path(row.result_path).read_text(encoding="utf-8"))
    assert result["method"] == "contrast" and len(result["probe"]["levels"]) == 4
    assert "no level of guidance" in result["probe"]["reason"]


def test_a_probe_by_itself_is_a_job_with_a_result(house: House) -> None:
    row = house.ended(house.runs.start_probe(house.config(method="auto", guidance_level="examples")))
    assert (row.kind, row.state) == ("probe", "completed"), log_of(house, row)
    result = house.runs.probe_result(row.run_id)
    assert [level["level"] for level in result["levels"]] == ["examples"]
    assert result["measure"] == "judgement" and result["teacher"] == "claude-sonnet-5-5"
    assert row.spent_usd == usd_from_pico(house.endpoint.billed_pico) == pytest.approx(result["cost_usd"])


@pytest.mark.parametrize("seconds", [120, 3600], ids=["in the call", "without the machine"])
def test_a_wait_is_a_state_with_reason_and_wake_time_that_a_stop_ends(house: House, seconds: int) -> None:
    house.endpoint.answer = lambda params: error(429, "rate_limit_error", headers={"retry-after": str(seconds)})
    row = house.runs.start(house.config())
    wait_until(lambda: house.store.get(row.run_id).state == "waiting", 60)
    waiting = house.store.get(row.run_id)
    assert waiting.waiting_reason and waiting.wake_at and waiting.wake_at > waiting.created_at
    if seconds > 600:
        wait_until(lambda: is_free(house.home.device_lock), 10)
    assert house.runs.status(row.run_id).state == "waiting", "its worker lives"
    stopped = house.runs.stop(row.run_id, 10)
    assert (stopped.state, stopped.end_reason) == ("stopped", "by_user")
    assert (stopped.waiting_reason, stopped.wake_at) == (None, None)
    assert house.endpoint.billed_pico == 0


def is_free(path: Path) -> bool:
    lock = try_lock(path)
    if lock is not None:
        os.close(lock)
    return lock is not None


def test_a_key_in_the_homes_env_file_is_enough(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    (house.home.home / ".env").write_text(f"ANTHROPIC_API_KEY={CANARY}\n", encoding="utf-8")
    row = house.run(num_training_steps=1)
    assert row.state == "completed", log_of(house, row)
    assert {headers["authorization"] for _, _, headers, _ in house.endpoint.requests} == {f"Bearer {CANARY}"}
    assert house.holds(CANARY) == [str(house.home.home / ".env")]


def test_a_refusal_of_the_undertaking_ends_the_run_and_says_why(house: House) -> None:
    refusal = {"stop_reason": "refusal", "stop_details": {"type": "refusal", "category": "frontier_llm"}}
    house.endpoint.script.append(Reply(message=refusal))
    row = house.run(teacher_max_concurrent=1)
    assert (row.state, row.end_reason) == ("stopped", "teacher_refused"), log_of(house, row)
    assert "terms" in row.message and not row.budget_exceeded


def test_a_key_that_is_not_accepted_fails_the_run_without_showing_it(house: House) -> None:
    body = json.dumps({"type": "error", "error": {"type": "authentication_error", "message": f"bad key {CANARY}"}})
    house.endpoint.answer = lambda params: Reply(status=401, raw=body.encode())
    row = house.run()
    assert (row.state, row.end_reason) == ("failed", "error")
    assert row.error_message and CANARY not in row.error_message
    assert house.endpoint.billed_pico == 0 and row.spent_usd == 0.0
    assert house.holds(CANARY) == []


def files_of(house: House, kind: str) -> list[Path]:
    """What a job has left in one of the home's folders."""
    return [path for path in (house.home.home / kind).rglob("*") if path.is_file()]


# row 9
@pytest.mark.parametrize("kind", ["run", "probe", "comparison"])
@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (error(401, "authentication_error", f"bad key {CANARY}"), "API key is not accepted"),
        (error(404, "not_found_error", "model: claude-sonnet-5-5"), "does not exist or is retired"),
    ],
    ids=["key", "model"],
)
def test_a_wrong_key_or_model_fails_a_job_before_anything_is_made(
    house: House, kind: str, refusal: Reply, says: str
) -> None:
    source = house.run(num_training_steps=1) if kind == "comparison" else None
    asked = len(house.endpoint.requests)
    folders = ("rollouts", "metrics", "results", "checkpoints", "teacher_completions")
    before = {folder: files_of(house, folder) for folder in folders}
    house.endpoint.model_script.append(refusal)
    if source is not None:
        assert source.state == "completed", log_of(house, source)
        candidates = (Candidate(name="base"), Candidate(name="distilled", adapter_path=source.final_adapter_path))
        spec = ComparisonSpec(run_id=source.run_id, candidates=candidates, judge=True, judge_budget_usd=0.5)
        row = house.ended(house.runs.start_comparison(spec))
    else:
        row = house.run() if kind == "run" else house.ended(house.runs.start_probe(house.config(method="auto")))
    assert (row.state, row.end_reason) == ("failed", "error")
    assert row.error_message and says in row.error_message
    assert [path for _, path, _, _ in house.endpoint.requests[asked:]] == ["/v1/models/claude-sonnet-5-5"]
    assert house.ledger.totals(row.run_id).calls == 0
    assert {folder: files_of(house, folder) for folder in folders} == before
    assert house.holds(CANARY) == []


def test_a_look_at_the_teacher_that_fails_in_passing_lets_the_run_go_on(house: House) -> None:
    house.endpoint.model_script.extend([error(503), error(500)])
    row = house.run(num_training_steps=1)
    assert row.state == "completed", log_of(house, row)
    assert "could not be looked at" in log_of(house, row) and len(house.endpoint.model_script) == 1


def test_a_teacher_whose_end_is_near_is_told_in_the_log_and_once_as_an_event(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = "claude-haiku-4-5"  # promised until a day that has passed: this stays true whatever day the test is run on
    monkeypatch.setitem(PRICES, model, (1_000_000, 1_250_000, 100_000, 5_000_000))
    row = house.run(teacher_model_id=model, num_training_steps=1)
    assert row.state == "completed", log_of(house, row)
    [line] = [line for line in log_of(house, row).splitlines() if "warning: " in line]
    assert "retires not before 2026-10-15" in line
    events = [event.message for event in house.runs.events(row.run_id) if event.kind == "warning"]
    assert len([message for message in events if "retires not before" in message]) == 1


def test_the_estimates_worst_case_is_what_the_run_reserved(house: House) -> None:
    config = house.config(num_training_steps=8, teacher_model_id="claude-haiku-5-5")
    settings = read_settings(home=house.home.home)
    paid = estimate(config, house.store, roots=Roots.of(house.home.home), settings=settings).paid
    row = house.ended(house.runs.start(config))
    assert row.state == "completed", log_of(house, row)
    records = house.store._database.read("SELECT SUM(reserved_pico) AS pico FROM calls")
    assert paid is not None and paid.chosen.worst_pico == records[0]["pico"]
    assert paid.chosen.calls == len(house.endpoint.calls)
    assert estimate(config, house.store, roots=Roots.of(house.home.home), settings=settings).cost_usd == 0.0


def test_a_killed_worker_is_charged_what_it_had_under_way_and_the_run_goes_on(house: House) -> None:
    hold, arrived = threading.Event(), threading.Event()
    house.endpoint.script.append(Reply(text=json.dumps({"reference": "Yes."}), hold=hold, arrived=arrived))
    row = house.runs.start(house.config(teacher_max_concurrent=1))
    assert arrived.wait(60)
    pid = house.store.get(row.run_id).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: house.runs.status(row.run_id).state == "interrupted", 20)
    hold.set()
    dead = house.ledger.totals(row.run_id)
    assert dead.forfeited_calls == 1 and dead.reserved_pico == 0 and dead.spent_pico >= house.endpoint.billed_pico
    done = house.ended(house.runs.resume(row.run_id))
    assert done.state == "completed", log_of(house, done)
    totals = house.ledger.totals(row.run_id)
    assert house.endpoint.billed_pico <= totals.spent_pico <= totals.limit_pico
    assert done.latest_metrics is not None  # also what was spent after the last checkpoint, and by the kill
    assert done.latest_metrics["cumulative_cost_usd"] == pytest.approx(usd_from_pico(totals.spent_pico))


def test_a_comparison_is_judged_under_a_budget_of_its_own(house: House) -> None:
    row = house.run()
    assert row.final_adapter_path is not None
    candidates = (Candidate(name="base"), Candidate(name="distilled", adapter_path=row.final_adapter_path))
    billed = house.endpoint.billed_pico
    spec = ComparisonSpec(run_id=row.run_id, candidates=candidates, judge=True, judge_budget_usd=0.5)
    job = house.ended(house.runs.start_comparison(spec))
    assert job.state == "completed", log_of(house, job)
    result = house.runs.comparison_result(job.run_id)
    assert result["judge"]["name"] == "claude-sonnet-5-5"
    assert (job.budget_usd, job.spent_usd) == (0.5, usd_from_pico(house.endpoint.billed_pico - billed))
    assert house.runs.status(row.run_id).spent_usd == row.spent_usd
    assert house.holds(CANARY) == []
