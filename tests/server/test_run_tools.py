"""The tools around one run: start, status, wait, metrics, list, stop, resume."""

from __future__ import annotations

import anyio
import pytest
from mcp.client import Client

from server.app import server_for
from tests.server.fakes import ERAS, Era, FakeUseCases, call, data_of, text_of
from tests.server.records import CONFIG, completed, make_row


def test_start_hands_on_the_checked_configuration_and_returns_at_once() -> None:
    cases = FakeUseCases(rows=[make_row(state="queued", queue_position=2, step=0, message="A warning.")])
    data = data_of(call(cases, "start_distillation", {**CONFIG, "learning_rate": 5e-4}))
    ((_, config),) = cases.asked
    assert config.learning_rate == 5e-4 and config.base_model_path == "tiny"
    assert data["status"] == "success" and data["run_id"] == "opd_1" and data["queue_position"] == 2
    assert data["message"] == "A warning."


def test_a_repeated_start_of_an_ended_run_says_that_nothing_was_started() -> None:
    data = data_of(call(FakeUseCases(rows=[completed()]), "start_distillation", CONFIG))
    assert data["summary"].startswith("Nothing new was started") and "compare_adapters" in data["next_step"]


def test_status_has_the_promised_names_and_its_text_the_same_facts() -> None:
    result = call(FakeUseCases(rows=[make_row()]), "get_status", {"run_id": "opd_1"})
    data, text = data_of(result), text_of(result)
    assert data["metrics"]["step"] == 12 and data["metrics"]["total_steps"] == 30
    assert data["metrics"]["kl_loss"] == 0.4257 and data["metrics"]["cumulative_cost_usd"] == 0.0
    assert data["estimated_time_remaining_seconds"] == 180
    assert data["budget_warning"] is False and data["budget_exceeded"] is False
    assert data["final_adapter_path"] is None
    assert "step 12 of 30" in text and "reverse KL 0.83" in text


def test_a_failed_run_shows_its_error_and_log_as_escaped_data() -> None:
    row = make_row(
        state="failed",
        end_reason="error",
        error_message="The loss is not finite. Lower learning_rate.",
        last_log_lines=("ok", "evil \x1b[2J" + "x" * 1000),
    )
    data = data_of(call(FakeUseCases(rows=[row]), "get_status"))
    assert "The loss is not finite." in data["summary"] and "resume_distillation" in data["next_step"]
    assert "\x1b" not in data["log_tail"][1] and len(data["log_tail"][1]) < 300


def test_waiting_is_shortened_to_fifty_seconds_and_says_so() -> None:
    data = data_of(call(FakeUseCases(rows=[completed()]), "wait_for_run", {"timeout_seconds": 300}))
    assert data["timeout_applied_s"] == 50 and data["timed_out"] is False
    assert data["final_adapter_path"] == "/home/checkpoints/opd_1"


def test_waiting_without_time_returns_the_unfinished_status() -> None:
    data = data_of(call(FakeUseCases(rows=[make_row()]), "wait_for_run", {"timeout_seconds": 0}))
    assert data["timed_out"] is True and data["state"] == "running"


def test_waiting_stays_with_the_run_it_began_with() -> None:
    cases = FakeUseCases(rows=[make_row(), completed()])
    data_of(call(cases, "wait_for_run", {"timeout_seconds": 5}))
    assert cases.asked == [("status", None), ("status", "opd_1")]


@pytest.mark.parametrize("era", ERAS)
def test_progress_of_a_wait_reaches_the_client(era: Era) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    async def go() -> None:
        cases = FakeUseCases(rows=[make_row(), make_row(), completed()])
        async with Client(server_for(cases), mode=era) as client:
            await client.call_tool("wait_for_run", {"timeout_seconds": 5}, progress_callback=note)

    anyio.run(go)
    assert seen == [(12.0, 30.0, "step 12 of 30, rollout, KL loss 0.426")]


def test_metrics_keep_the_main_figures_and_give_the_last_line_in_full() -> None:
    lines = [{"step": step, "kl_loss": 1 / step, "rollout_seconds": 0.123456} for step in range(1, 31)]
    cases = FakeUseCases(rows=[make_row()], lines=lines)
    result = call(cases, "get_metrics", {"points": 30, "since_step": 0})
    data = data_of(result)
    assert cases.asked[1] == ("metrics", "opd_1", "train", 0, 30)
    assert data["metrics_history"][0] == {"step": 1, "kl_loss": 1.0}
    assert data["final_metrics"] == {"step": 30, "kl_loss": 0.03333, "rollout_seconds": 0.1235}
    assert "kl_loss went from 1 to 0.0333" in data["summary"] and "step 30" in text_of(result)


def test_metrics_of_a_run_that_has_none_yet_say_so() -> None:
    data = data_of(call(FakeUseCases(rows=[make_row(step=0)]), "get_metrics", {"series": "eval"}))
    assert data["metrics_history"] == [] and data["final_metrics"] is None and "No lines yet" in data["next_step"]


def test_list_of_runs_passes_filters_on_and_says_how_to_get_the_rest() -> None:
    cases = FakeUseCases(rows=[make_row(), completed(run_id="opd_2")], next_cursor="7")
    result = call(cases, "list_runs", {"limit": 2, "state": "running", "cursor": "9"})
    assert cases.asked[0] == ("list", None, "running", 2, "9")
    data = data_of(result)
    assert [run["run_id"] for run in data["runs"]] == ["opd_1", "opd_2"]
    assert data["next_cursor"] == "7" and "cursor 7" in data["summary"] and "opd_2" in text_of(result)


def test_stop_gives_step_checkpoint_and_message() -> None:
    row = make_row(state="stopped", end_reason="by_user", checkpoint_path="/c/step_000012")
    data = data_of(call(FakeUseCases(rows=[row]), "stop_distillation", {"run_id": "opd_1"}))
    assert data["status"] == "success" and data["final_step"] == 12
    assert data["checkpoint_path"] == "/c/step_000012" and "stopped at step 12" in data["message"]


def test_stop_that_needs_longer_says_so() -> None:
    data = data_of(call(FakeUseCases(rows=[make_row(state="stopping")]), "stop_distillation", {"timeout_seconds": 0}))
    assert data["state"] == "stopping" and "wait_for_run" in data["next_step"]


def test_resume_hands_on_what_may_change() -> None:
    cases = FakeUseCases(rows=[make_row(state="queued", queue_position=1, checkpoint_path="/c/step_000010")])
    arguments = {"num_training_steps": 60, "max_budget_usd": 5, "confirmed": True, "from_step": 10}
    data = data_of(call(cases, "resume_distillation", arguments | {"accept_changes": True}))
    assert cases.asked == [("resume", None, 60, 5, True, 10, True)]
    assert data["from_step"] == 10 and data["status"] == "success"
