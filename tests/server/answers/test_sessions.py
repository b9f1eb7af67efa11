"""`list_runs` by session: the shape that is promised, what is cut, and adapters as the tools show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opd_core.adapter_files import AdapterInfo
from opd_core.control.models import LocalModels
from opd_core.control.sessions import Session
from opd_core.state.rows import RunRow
from server.answers.reply import MAX_RESULT_BYTES, data_bytes
from server.answers.runs import runs
from server.answers.sessions import MAX_SESSION_RUNS
from tests.server.fakes import FakeUseCases, call, data_of, text_of
from tests.server.records import BASELINE, completed, make_row

TUNED = AdapterInfo(
    Path("/tunes/mine"), "mine", rank=8, base_model="tiny", modified_at="2026-11-20T10:00:00Z", loads=True
)


def members(count: int, **changes: Any) -> list[RunRow]:
    config = {"base_model_path": "/models/tiny", "learning_rate": 5e-4, "seed": 42, "session_id": "s"}
    fields: dict[str, Any] = {"session_id": "s", "config": config, **changes}
    return [completed(number=number, run_id=f"opd_{number}", **fields) for number in range(count, 0, -1)]


class InSession(FakeUseCases):
    """Fake runs of a session that began with TUNED."""

    def sessions(self, rows: Any) -> list[Session]:
        return [Session("s", TUNED, tuple(row for row in rows if row.session_id == "s"))]


def test_a_session_asked_for_has_the_promised_shape() -> None:
    cases = InSession(rows=members(2))
    result = call(cases, "list_runs", {"session_id": "s", "state": "completed", "limit": 1})
    (session,) = data_of(result)["sessions"]
    assert list(session) == ["session_id", "sft_run", "opd_runs"] and session["session_id"] == "s"
    assert session["sft_run"] == {
        "path": "/tunes/mine",
        "base_model": "tiny",
        "rank": 8,
        "modified": "2026-11-20T10:00:00Z",
        "loads": True,
        "problem": None,
    }
    first = session["opd_runs"][0]
    assert {"run_id", "config", "metrics", "final_adapter_path"} <= set(first)
    assert first["config"] == {"base_model_path": "/models/tiny", "learning_rate": 5e-4}
    assert first["metrics"]["kl_loss"] == 0.4257 and first["baseline"]["reverse_kl"] == BASELINE["reverse_kl"]
    assert first["final_adapter_path"] == "/home/checkpoints/opd_1"
    assert [run["run_id"] for run in session["opd_runs"]] == ["opd_2", "opd_1"]
    assert cases.asked[:2] == [("list", "s", "completed", 1, None), ("list", "s", None, MAX_SESSION_RUNS, None)]
    text = text_of(result)
    assert "session s: began with the adapter /tunes/mine (rank 8 for tiny); runs opd_2, opd_1" in text


def test_a_list_of_runs_names_their_sessions_briefly() -> None:
    rows = [*members(2), make_row(run_id="alone")]
    data = data_of(call(InSession(rows=rows), "list_runs"))
    (session,) = data["sessions"]
    assert [run["run_id"] for run in session["opd_runs"]] == ["opd_2", "opd_1"]
    assert session["opd_runs"][0]["config"] is None and session["opd_runs"][0]["metrics"] is None
    assert len(data["runs"]) == 3 and data["sessions_cut"] is None


def test_runs_without_a_session_and_no_runs_have_no_sessions() -> None:
    for rows in ([], [make_row()]):
        assert data_of(call(FakeUseCases(rows=rows), "list_runs"))["sessions"] == []


def test_a_session_that_began_with_the_base_says_so() -> None:
    result = call(FakeUseCases(rows=members(1)), "list_runs", {"session_id": "s"})
    assert data_of(result)["sessions"][0]["sft_run"] is None
    assert "began with the base model alone" in text_of(result)


@pytest.mark.parametrize("whole", [True, False])
def test_a_huge_session_is_cut_to_the_newest_runs_and_says_so(whole: bool) -> None:
    config = {"base_model_path": "/" + "m" * 200, "teacher_system_prompt": "x" * 5000, "prompts_path": "/" + "p" * 300}
    rows = members(MAX_SESSION_RUNS, config=config, final_adapter_path="/" + "a" * 300)
    sessions = [Session("s", TUNED, tuple(rows))]
    answer = runs(rows[:10], "7", sessions, whole_session=whole)
    kept = answer.sessions[0].opd_runs
    assert 0 < len(kept) < len(rows) and [run.run_id for run in kept] == [row.run_id for row in rows[: len(kept)]]
    assert answer.sessions_cut is not None and str(len(rows) - len(kept)) in answer.sessions_cut
    assert data_bytes(answer.model_dump(mode="json")) < MAX_RESULT_BYTES


def test_older_runs_than_were_read_are_mentioned() -> None:
    cases = InSession(rows=members(2), next_cursor="1")
    cut = data_of(call(cases, "list_runs", {"session_id": "s"}))["sessions_cut"]
    assert cut.startswith("Older runs are not shown")


def test_text_of_a_session_is_made_safe() -> None:
    name, folder = "s\u202e\x1b[31m", Path("/tunes/\x1b]0;x")
    rows = [make_row(session_id=name)]
    answer = runs(rows, None, [Session(name, AdapterInfo(folder, "x", problem="no\u202e"), tuple(rows))])
    shown = answer.model_dump_json()
    assert "\u202e" not in shown and "\\u001b" not in shown


def test_adapters_are_shown_with_base_rank_date_and_whether_they_load() -> None:
    broken = AdapterInfo(Path("/tunes/broken"), "broken", rank=4, problem="cut short", loads=False)
    unknown = AdapterInfo(Path("/tunes/unknown"), "unknown", rank=4)
    result = call(FakeUseCases(models=LocalModels((), (TUNED, broken, unknown), "The search ended.")), "list_models")
    data = data_of(result)
    assert [adapter["loads"] for adapter in data["adapters"]] == [True, False, None]
    assert data["summary"].endswith("The search ended.")
    text = text_of(result)
    assert "- adapter /tunes/mine (rank 8 for tiny, of 2026-11-20); fits its base model" in text
    assert "- adapter /tunes/broken (rank 4); cannot be used: cut short\n" in text
    assert "- adapter /tunes/unknown (rank 4)\n" in text
