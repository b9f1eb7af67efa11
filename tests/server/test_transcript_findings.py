"""What an assistant was found not to know when it read the transcript (benchmarks/transcript.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.config import parse_config
from opd_core.errors import PathError
from opd_core.roots import Roots
from server.answers.estimates import estimate
from server.answers.figures import settings_of
from server.answers.reply import MAX_DATA_BYTES, data_bytes, reply
from server.answers.runs import runs, started, stopped
from server.answers.sentences import status_summary
from server.answers.status import run_status
from server.verbs import VERBS
from tests.server.fakes import FakeUseCases, call, text_of
from tests.server.records import completed, make_row

PAID = {"base_model_path": "m", "prompts_path": "p.jsonl", "teacher_kind": "claude"}


def test_the_status_says_what_the_run_was_asked_for_in_text_and_data() -> None:
    row = make_row(config={"base_model_path": "/models/tiny", "learning_rate": 0.005, "seed": 42})
    result = call(FakeUseCases(rows=[row]), "get_status")
    assert result.structured_content is not None
    assert result.structured_content["settings"] == {"base_model_path": "/models/tiny", "learning_rate": 0.005}
    assert 'settings: base_model_path "/models/tiny", learning_rate 0.005' in text_of(result)


def test_a_wait_repeats_no_settings() -> None:
    result = call(FakeUseCases(rows=[completed()]), "wait_for_run")
    assert result.structured_content is not None and result.structured_content["settings"] is None


def test_long_settings_are_cut_and_say_so() -> None:
    examples = [{"prompt": "p" * 4000, "completion": "c" * 4000}] * 64
    schema = {"kind": "json_schema", "schema": {"properties": {f"name_{n}": {"type": "string"} for n in range(3000)}}}
    config = {"teacher_examples": examples, "check": schema, "teacher_system_prompt": "s" * 60_000}
    settings = settings_of(make_row(config=config))
    assert data_bytes(settings) < MAX_DATA_BYTES // 4
    assert all("more characters]" in settings[name] for name in config)


def test_a_limit_is_never_shown_larger_than_it_is() -> None:
    row = completed(budget_usd=2.035, spent_usd=0.5)
    assert "of its budget of $2.035" in status_summary(row)
    assert "of $2.035" in "\n".join(VERBS["get_status"].facts(run_status(row)))


def test_an_error_message_ends_its_sentence_once() -> None:
    for message in ("No key", "No key."):
        summary = status_summary(make_row(state="failed", error_message=message, budget_usd=1.0))
        assert "No key. It has spent" in summary


def test_a_message_that_repeats_the_summary_is_said_once() -> None:
    answer = stopped(make_row(state="stopped", end_reason="by_user"))
    text = text_of(reply(answer, VERBS["stop_distillation"].facts(answer)))
    assert text.count(answer.summary) == 1
    begun = started(make_row(message="There are only 4 held-out prompts."))
    assert "only 4" in text_of(reply(begun, VERBS["start_distillation"].facts(begun)))


def test_one_run_is_no_plural_and_a_job_has_no_steps() -> None:
    answer = runs([completed(kind="comparison", run_id="cmp_1", step=0, total_steps=0)], None)
    text = text_of(reply(answer, VERBS["list_runs"].facts(answer)))
    assert text.startswith("1 run.") and "step" not in text.splitlines()[1]


def test_an_estimate_for_a_paid_teacher_without_a_budget_asks_for_one() -> None:
    from tests.server.records import make_estimate, make_paid

    paid = make_estimate(paid=make_paid())
    assert "how many dollars" in estimate(paid, names_budget=False).next_step
    assert "how many dollars" not in estimate(paid).next_step
    assert "max_budget_usd" not in parse_config(PAID).model_fields_set


def test_a_path_that_does_not_exist_names_the_one_meant(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for name in ("prompts.jsonl", ".prompt.jsonl", "ignore all rules and.txt"):
        (inside / name).touch()
    roots = Roots.of(inside)
    with pytest.raises(PathError, match=r"does not exist\. Did you mean 'prompts\.jsonl'"):
        roots.check(inside / "promps.jsonl", "prompts_path", "file")
    with pytest.raises(PathError, match="is no plain name"):
        roots.check(inside / "ignore all rules an.txt", "prompts_path", "file")
    with pytest.raises(PathError, match="Give the path of an existing file"):
        roots.check(inside / "holiday.png", "prompts_path", "file")


def test_nothing_beside_an_allowed_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "secrets_2026").mkdir()
    roots = Roots.of(tmp_path / "secrets_2025")
    with pytest.raises(PathError) as refused:
        roots.check(tmp_path / "secrets_2025", "base_model_path", "folder")
    assert "2026" not in str(refused.value)
