"""The tools as a client sees them: answers that stand alone in both forms, errors in plain words, both eras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from mcp.client import Client

import opd_core.demo
from opd_core.adapter_files import AdapterInfo
from opd_core.control.models import LocalModels
from opd_core.errors import HomeError, PromptFileError
from opd_core.model_files import ModelInfo
from opd_core.paths import HomePaths
from server.answers.reply import MAX_RESULT_BYTES
from server.app import server_for
from server.arguments.jobs import OWN_PROBE_ARGUMENTS
from server.protocol.texts import INSTRUCTIONS, TOOLS
from server.protocol.tool_schemas import DESCRIBED_BY_START
from server.settings import Problem
from server.verbs import VERBS
from tests.server.fakes import ERAS, Era, FakeUseCases, call, data_of, text_of
from tests.server.records import (
    BLOCKING,
    COMPARED,
    CONFIG,
    JUDGED,
    PROBED,
    completed,
    make_estimate,
    make_paid,
    make_report,
    make_row,
    paid,
)

HELD_OUT_FILE = Path(opd_core.demo.__file__).with_name("held_out.jsonl")
CALLS: dict[str, tuple[FakeUseCases, dict[str, Any]]] = {
    "check_setup": (FakeUseCases(), {}),
    "list_models": (FakeUseCases(), {}),
    "estimate_cost": (FakeUseCases(), CONFIG),
    "probe_teacher": (
        FakeUseCases(rows=[completed(kind="probe", run_id="prb_1", total_steps=0)], probe=PROBED),
        CONFIG,
    ),
    "start_distillation": (FakeUseCases(rows=[make_row(state="queued", queue_position=2, step=0)]), CONFIG),
    "get_status": (FakeUseCases(rows=[make_row()]), {}),
    "wait_for_run": (FakeUseCases(rows=[completed()]), {"timeout_seconds": 1}),
    "get_metrics": (FakeUseCases(rows=[make_row()], lines=[{"step": 1, "kl_loss": 0.5}]), {}),
    "list_runs": (FakeUseCases(rows=[make_row(), completed()]), {}),
    "stop_distillation": (FakeUseCases(rows=[make_row(state="stopped", end_reason="by_user")]), {}),
    "resume_distillation": (FakeUseCases(rows=[make_row(state="queued", queue_position=1)]), {}),
    "compare_adapters": (
        FakeUseCases(rows=[completed(kind="comparison", run_id="cmp_1", total_steps=0)], result=COMPARED),
        {},
    ),
    "inspect_prompts": (FakeUseCases(), {"prompts_path": str(HELD_OUT_FILE)}),
    "plot_metrics": (FakeUseCases(rows=[make_row()], lines=[{"step": 1, "total_loss": 0.5}]), {}),
    "read_log": (FakeUseCases(rows=[make_row()]), {}),
    "diagnose_run": (FakeUseCases(rows=[make_row()]), {}),
    "export_report": (FakeUseCases(rows=[completed()]), {}),
}


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_answers_with_summary_and_next_step_in_both_forms(name: str, era: Era) -> None:
    cases, arguments = CALLS[name]

    async def go() -> None:
        async with Client(server_for(cases), mode=era) as client:
            result = await client.call_tool(name, arguments)
            schema = next(tool.output_schema for tool in (await client.list_tools()).tools if tool.name == name)
            if VERBS[name].shows_image:
                assert schema is None and result.structured_content is None and "Next: " in text_of(result)
                return
            data, text = data_of(result), text_of(result)
            assert data["summary"] in text
            assert data["next_step"] in text
            jsonschema.validate(data, schema or {})

    anyio.run(go)


@pytest.mark.parametrize("era", ERAS)
def test_every_tool_sets_its_title_and_all_four_hints(era: Era) -> None:
    async def go() -> None:
        async with Client(server_for(FakeUseCases()), mode=era) as client:
            tools = (await client.list_tools()).tools
            assert [tool.name for tool in tools] == list(TOOLS)
            for tool in tools:
                assert tool.annotations is not None and tool.title
                hints = tool.annotations.model_dump(exclude={"title"})
                assert len(hints) == 4 and None not in hints.values(), tool.name
                assert tool.description and len(tool.description) < 2000

    anyio.run(go)


@pytest.mark.parametrize("era", ERAS)
def test_input_schemas_describe_every_field_and_carry_no_framework_noise(era: Era) -> None:
    async def go() -> None:
        async with Client(server_for(FakeUseCases()), mode=era) as client:
            for tool in (await client.list_tools()).tools:
                for name, field in tool.input_schema["properties"].items():
                    if tool.name not in DESCRIBED_BY_START or name in OWN_PROBE_ARGUMENTS:  # the rest is a run's
                        assert field.get("description"), f"{tool.name}.{name}"
                    assert "title" not in field and {"type": "null"} not in field.get("anyOf", [])
                assert "$ref" not in json.dumps(tool.input_schema)
                jsonschema.Draft202012Validator.check_schema(tool.input_schema)

    anyio.run(go)


@pytest.mark.parametrize("era", ERAS)
def test_the_server_introduces_itself_with_the_order_of_calls_and_its_version(era: Era) -> None:
    async def go() -> None:
        async with Client(server_for(FakeUseCases()), mode=era) as client:
            assert client.instructions and len(client.instructions) < 2000
            order = (
                "check_setup -> list_models -> estimate_cost -> start_distillation -> wait_for_run -> compare_adapters"
            )
            assert order in client.instructions
            assert client.server_info and client.server_info.version

    anyio.run(go)


@pytest.mark.parametrize("era", ERAS)
def test_an_error_of_ours_keeps_its_own_text(era: Era) -> None:
    cases = FakeUseCases(error=PromptFileError("Line 7 of prompts.jsonl is not valid JSON. Correct it."))
    result = call(cases, "start_distillation", CONFIG, era)
    assert result.is_error
    assert "Line 7 of prompts.jsonl is not valid JSON. Correct it." in text_of(result)
    assert result.structured_content is None


def test_a_run_that_does_not_exist_yet_says_which_tool_makes_one() -> None:
    result = call(FakeUseCases(), "get_status")
    assert result.is_error and "start_distillation" in text_of(result)


def test_an_unexpected_error_names_its_class_and_the_log_but_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    cases = FakeUseCases(error=KeyError("secret rollout text"), home=HomePaths(tmp_path))
    result = call(cases, "get_status")
    text = text_of(result)
    assert result.is_error and "KeyError" in text and str(tmp_path / "logs" / "server.log") in text
    assert "Traceback" not in text and "secret" not in text
    assert "secret rollout text" in (tmp_path / "logs" / "server.log").read_text()


def test_an_unexpected_error_without_a_home_goes_to_the_error_output(capfd: pytest.CaptureFixture[str]) -> None:
    text = text_of(call(FakeUseCases(error=ZeroDivisionError("x")), "list_runs"))
    assert "ZeroDivisionError" in text and "error output" in text
    assert "Traceback" in capfd.readouterr().err


def test_an_unusable_home_is_one_clear_error_of_the_call() -> None:
    error = HomeError("OPD_HOME '/x' cannot be used: Permission denied. Make it a writable folder.")
    assert "Permission denied" in text_of(call(FakeUseCases(error=error), "start_distillation", CONFIG))


def test_setup_shows_problems_of_the_machine_and_of_the_settings_with_their_fixes() -> None:
    cases = FakeUseCases(
        report=make_report(problems=(BLOCKING,)),
        settings_problems=(Problem("OPD_ROTS is not a setting; it was ignored.", "Did you mean OPD_ROOTS?"),),
    )
    result = call(cases, "check_setup")
    data, text = data_of(result), text_of(result)
    assert not data["ready"] and "No run can start yet: 2 problems" in data["summary"]
    assert "Make it writable." in text and "Did you mean OPD_ROOTS?" in text
    assert "123.4" in text and data["facts"]["blas"]["source"] == "system"


def test_models_are_filtered_capped_and_their_trouble_is_told() -> None:
    good = [ModelInfo(Path(f"/m/good-{number}"), f"good-{number}", bytes=10**9) for number in range(40)]
    bad = ModelInfo(Path("/m/bad"), "bad", problem="config.json is missing")
    adapter = AdapterInfo(Path("/a/one"), "one", rank=8)
    cases = FakeUseCases(models=LocalModels((*good, bad), (adapter,)))
    everything = data_of(call(cases, "list_models"))
    assert len(everything["models"]) == 25 and everything["not_shown"] == 16
    filtered = call(cases, "list_models", {"contains": "BAD"})
    assert [model["name"] for model in data_of(filtered)["models"]] == ["bad"]
    assert "config.json is missing" in text_of(filtered)


def test_estimate_rounds_its_numbers_and_says_where_they_come_from() -> None:
    result = call(FakeUseCases(), "estimate_cost", CONFIG)
    data = data_of(result)
    assert data["minutes_expected"] == 4.432 and data["basis"] == "guess" and data["cost_usd"] == 0.0
    assert "learning_rate is high" in text_of(result) and "The minutes are a guess." in data["summary"]


def test_a_free_run_says_that_it_costs_nothing() -> None:
    data = data_of(call(FakeUseCases(), "estimate_cost", CONFIG))
    assert data["paid"] is None and "It costs $0.00" in data["summary"] and "terms" not in data["next_step"]


def test_the_estimate_of_a_paid_run_says_what_is_likely_what_is_worst_and_what_is_not_covered() -> None:
    result = call(FakeUseCases(estimated=make_estimate(cost_usd=0.19123456, paid=make_paid())), "estimate_cost", CONFIG)
    data, text = data_of(result), text_of(result)
    assert "expected to cost $0.1912, at worst $2.50, of a budget of $0.10" in data["summary"]
    assert "covers about 52 %" in data["summary"] and "checked the provider's terms" in data["next_step"]
    assert data["paid"]["chosen"]["cache_hits"] == 8 and data["paid"]["methods"][0]["method"] == "probe"
    for fact in (
        "one call reserves up to $0.0312; $7.50 left of this month's budget",
        "about 72 calls, 8 answers from the cache, 51,000 tokens in, 9,000 out",
        "with teacher_batch_api: expected $0.0956, at worst $1.25",
        "not covered by the budget: $0.0912",
        "- probe: expected $0.08, at worst $1.60",
    ):
        assert fact in text


def test_a_finished_comparison_gives_the_table_the_ceiling_and_escaped_samples() -> None:
    cases, arguments = CALLS["compare_adapters"]
    result = call(cases, "compare_adapters", arguments)
    data, text = data_of(result), text_of(result)
    assert data["status"] == "completed" and data["teacher_task_score"]["mean"] == 1.0
    assert data["rows"][1]["verdict"] == "better" and "distilled is shown to be better than base" in data["next_step"]
    assert "97.5 %" in text and "\x1b" not in json.dumps(data, ensure_ascii=False) + text


def test_a_comparison_still_at_work_says_how_to_fetch_it() -> None:
    row = make_row(kind="comparison", run_id="cmp_1", total_steps=0, step=0, config={"run_id": "opd_1"})
    cases = FakeUseCases(rows=[row])
    data = data_of(call(cases, "compare_adapters", {"timeout_seconds": 0}))
    assert data["status"] == "pending" and data["rows"] == []
    assert "compare_adapters with job_id cmp_1" in data["next_step"]


def test_a_comparison_tells_at_its_start_what_it_was_warned_of() -> None:
    row = make_row(
        kind="comparison", run_id="cmp_1", total_steps=0, config={"run_id": "opd_1"}, message="Low \x1b month."
    )
    result = call(FakeUseCases(rows=[row]), "compare_adapters", {"timeout_seconds": 0})
    assert data_of(result)["warnings"] == ["Low \\x1b month."] and "- warning: Low" in text_of(result)
    fetched = call(FakeUseCases(rows=[row]), "compare_adapters", {"job_id": "cmp_1", "timeout_seconds": 0})
    assert data_of(fetched)["warnings"] == []


def test_fetching_a_comparison_by_its_job_starts_no_other() -> None:
    cases, _ = CALLS["compare_adapters"]
    cases.asked.clear()
    data_of(call(cases, "compare_adapters", {"job_id": "cmp_1"}))
    assert "start_comparison" not in [asked[0] for asked in cases.asked]


def test_a_comparison_that_failed_says_why() -> None:
    row = make_row(kind="comparison", run_id="cmp_1", state="failed", error_message="No adapter loads.", total_steps=0)
    data = data_of(call(FakeUseCases(rows=[row]), "compare_adapters", {"job_id": "cmp_1"}))
    assert data["status"] == "failed" and "No adapter loads." in data["summary"]


def test_the_largest_results_stay_under_twenty_kilobytes_and_say_what_was_cut() -> None:
    long = {f"metric_{number}": 0.123456 for number in range(60)}
    lines = [{**TRAIN_FIELDS, **long, "step": step} for step in range(200)]
    metrics = call(FakeUseCases(rows=[make_row()], lines=lines), "get_metrics", {"points": 200})
    sample: dict[str, Any] = {"prompt": "p" * 400, "reference": "r" * 400, "teacher": "t" * 400}
    sample |= {"answers": {f"adapter {number}": "é" * 400 for number in range(6)}}
    rows = [{**COMPARED["rows"][0], "name": f"adapter {number}"} for number in range(6)]
    wide = {**COMPARED, "rows": rows, "samples": [sample] * 4}
    comparison = call(
        FakeUseCases(rows=[completed(kind="comparison", run_id="cmp_1")], result=wide), "compare_adapters"
    )
    models = [ModelInfo(Path("/" + "m" * 290), "n" * 120, problem="p" * 190) for _ in range(100)]
    listed = call(FakeUseCases(models=LocalModels(tuple(models), ())), "list_models")
    paths = {"base_model_path": "/b" * 200}
    runs = [completed(config=paths, final_adapter_path="/c" * 150) for _ in range(20)]
    history = call(FakeUseCases(rows=runs), "list_runs", {"limit": 20})
    for result in (metrics, comparison, listed, history):
        assert len(result.model_dump_json(by_alias=True).encode()) < MAX_RESULT_BYTES
    assert data_of(metrics)["cut"] and data_of(comparison)["cut"] and data_of(listed)["not_shown"] > 75


TRAIN_FIELDS = {
    "kl_loss": 0.12345, "total_loss": 0.12345, "kl_divergence_mean": 0.1, "student_entropy": 1.1, "kl_weight": 1.0,
    "teacher_alignment_pct": 80.12, "tokens_per_second": 55.5, "gradient_norm": 0.77, "truncation_rate": 0.0,
}  # fmt: skip


def test_a_judged_comparison_tells_the_win_rate_at_equal_length_and_what_it_cost() -> None:
    judge = {"name": "claude-sonnet-5-5", "cost_usd": 0.0213, "calls": 76, "cache_hits": 4, "note": "Not all \x1b."}
    rows = [COMPARED["rows"][0], {**COMPARED["rows"][1], "judged": JUDGED}]
    result = {**COMPARED, "rows": rows, "judge": judge}
    cases = FakeUseCases(rows=[completed(kind="comparison", run_id="cmp_1", total_steps=0)], result=result)
    answer = call(cases, "compare_adapters", {"judge": True, "judge_budget_usd": 0.1})
    data, text = data_of(answer), text_of(answer)
    assert data["rows"][1]["judged"]["length_controlled_win_rate"]["mean"] == 0.8123
    assert data["rows"][0]["judged"] is None and data["judge"]["calls"] == 76
    assert "wins 30, ties 8 (3 turned with the order), losses 2; at equal length 81.2 % (66 % to 90 %): better" in text
    assert "$0.0213" in text and "\x1b" not in text
    ((_, arguments), *_) = cases.asked
    assert arguments.judge and arguments.judge_budget_usd == 0.1


def test_a_comparison_that_nothing_decides_offers_the_judge() -> None:
    rows = [{**row, "verdict": None} for row in COMPARED["rows"]]
    result = {**COMPARED, "rows": rows, "primary_metric": None, "teacher": {"name": "claude", "task_score": None}}
    cases = FakeUseCases(rows=[completed(kind="comparison", run_id="cmp_1", total_steps=0)], result=result)
    data = data_of(call(cases, "compare_adapters"))
    assert "judge true" in data["next_step"] and data["teacher_task_score"] is None


def test_status_has_the_budget_in_both_forms() -> None:
    cases = FakeUseCases(rows=[make_row(**paid(limit=1.0, spent=0.81, reserved=0.05))])
    result = call(cases, "get_status")
    data, text = data_of(result), text_of(result)
    assert data["budget_warning"] and data["budget"]["reserved_usd"] == 0.05 and data["budget"]["used_pct"] == 86.0
    assert "$0.81 spent and $0.05 reserved of $1.00" in text and "four fifths" in text


@pytest.mark.parametrize("name", ["probe_teacher", "start_distillation", "resume_distillation", "compare_adapters"])
def test_tools_that_may_call_a_provider_say_so(name: str) -> None:
    assert TOOLS[name].open_world and not TOOLS["estimate_cost"].open_world


def test_instructions_speak_of_money_and_stay_short() -> None:
    assert len(INSTRUCTIONS.encode()) < 2000
    assert "probe_teacher" in INSTRUCTIONS and "max_budget_usd" in INSTRUCTIONS and "terms" in INSTRUCTIONS
