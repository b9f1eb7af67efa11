"""A start becomes one row with its files, or nothing at all: ids, requests sent twice, refusals, comparisons."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from opd_core.comparison import ComparisonSpec
from opd_core.config import parse_config
from opd_core.config_io import read_config
from opd_core.control.queueing import NewJobs
from opd_core.control.runs import Runs
from opd_core.errors import ConfirmationNeededError, HomeError, PathError, PromptFileError, StateError
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.settings import Settings
from opd_core.state.store import RunStore
from tests.opd_core.control.runs_kit import Check, config, files
from tests.waiting import wait_until

# --- start


def test_a_start_leaves_a_row_a_complete_configuration_and_a_worker(
    runs: Runs, home: HomePaths, store: RunStore
) -> None:
    row = runs.start(config(num_training_steps=30, session_id="s"))
    assert row.run_id.startswith("opd_2")
    assert (row.kind, row.total_steps, row.session_id) == ("distillation", 30, "s")
    written = read_config(home.config(row.run_id))
    assert (written.run_id, written.method, written.num_training_steps) == (row.run_id, "kl", 30)
    assert written == parse_config(row.config)
    wait_until(lambda: store.get(row.run_id).state == "completed", 20)


@pytest.mark.usefixtures("busy")
def test_warnings_are_told_at_once_and_kept_as_events(runs: Runs, check: Check) -> None:
    check.warnings = ("Only 8 held-out prompts.", "Memory is tight.")
    row = runs.start(config())
    assert row.message == "Only 8 held-out prompts. Memory is tight."
    assert [event.message for event in runs.events(row.run_id) if event.kind == "warning"] == list(check.warnings)


@pytest.mark.usefixtures("busy")
def test_two_starts_in_one_second_get_different_ids(runs: Runs) -> None:
    ids = {runs.start(config()).run_id for _ in range(4)}
    assert len(ids) == 4
    assert [row.queue_position for row in runs.list()[0]] == [4, 3, 2, 1]


@pytest.mark.usefixtures("busy")
def test_the_same_request_starts_one_run_even_when_it_would_be_refused_now(runs: Runs, check: Check) -> None:
    first = runs.start(config(client_request_id="x"))
    check.refusal = PromptFileError("The prompt file is gone.")
    assert runs.start(config(client_request_id="x")).run_id == first.run_id
    assert len(runs.list()[0]) == 1


def test_another_request_under_the_same_id_is_refused_and_names_the_difference(runs: Runs) -> None:
    first = runs.start(config(client_request_id="x"))
    with pytest.raises(StateError, match=rf"already started {first.run_id}, with seed 42 and not 7"):
        runs.start(config(client_request_id="x", seed=7))
    assert len(runs.list()[0]) == 1


@pytest.mark.usefixtures("busy")
def test_the_same_request_at_the_same_moment_starts_one_run(runs: Runs, home: HomePaths) -> None:
    barrier, ids = threading.Barrier(6), list[str]()

    def start() -> None:
        barrier.wait()
        ids.append(runs.start(config(client_request_id="x")).run_id)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 6 and len(set(ids)) == 1
    assert files(home.home / "configs") == [f"{ids[0]}.yaml"]


@pytest.mark.usefixtures("busy")
def test_a_taken_id_is_refused_and_the_first_run_keeps_its_files(runs: Runs, home: HomePaths) -> None:
    runs.start(config(run_id="mine", seed=1))
    with pytest.raises(StateError, match="'mine' is taken"):
        runs.start(config(run_id="mine", seed=2))
    assert read_config(home.config("mine")).seed == 1


@pytest.mark.usefixtures("busy")
def test_of_two_starts_with_one_id_the_loser_leaves_the_winners_configuration(
    runs: Runs, home: HomePaths, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier, losses = threading.Barrier(2), list[StateError]()
    monkeypatch.setattr(NewJobs, "_refuse_leftovers", lambda self, run_id: barrier.wait())

    def start(seed: int) -> None:
        try:
            runs.start(config(run_id="mine", seed=seed))
        except StateError as error:
            losses.append(error)

    threads = [threading.Thread(target=start, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(losses) == 1
    assert read_config(home.config("mine")).seed == store.get("mine").config["seed"]


def test_a_start_that_died_before_its_commit_is_no_obstacle_to_the_next(runs: Runs, home: HomePaths) -> None:
    """The configuration is written inside the transaction; a kill between the two leaves it without a row."""
    home.prepare()
    home.config("mine").write_text("left: behind\n")
    assert runs.start(config(run_id="mine", client_request_id="once")).run_id == "mine"
    assert read_config(home.config("mine")).client_request_id == "once"


def test_the_same_request_sent_twice_at_once_under_its_own_name_is_told_one_run(
    runs: Runs, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(run_id="mine", client_request_id="once")

    def other_is_quicker(self: Runs, run_id: str) -> None:
        monkeypatch.undo()
        store.create(run_id, "distillation", asked.model_dump(mode="json"), client_request_id="once")
        raise StateError("taken")

    monkeypatch.setattr(NewJobs, "_refuse_leftovers", other_is_quicker)
    assert runs.start(asked).run_id == "mine"


def test_files_of_a_run_that_is_gone_are_not_taken_over(runs: Runs, home: HomePaths) -> None:
    home.checkpoints("mine").mkdir(parents=True)
    with pytest.raises(StateError, match="exists"):
        runs.start(config(run_id="mine"))


def test_a_refused_start_leaves_nothing_at_all(runs: Runs, check: Check, home: HomePaths) -> None:
    check.refusal = PromptFileError("Line 7 is not JSON.")
    with pytest.raises(PromptFileError, match="Line 7"):
        runs.start(config())
    assert not home.home.exists()


@pytest.mark.usefixtures("busy")
def test_a_refused_start_leaves_a_used_home_as_it_was(runs: Runs, check: Check, home: HomePaths) -> None:
    runs.start(config(run_id="first"))
    before = {name: (home.home / name).stat().st_mtime_ns for name in files(home.home)}
    check.refusal = PromptFileError("Line 7 is not JSON.")
    with pytest.raises(PromptFileError):
        runs.start(config())
    assert {name: (home.home / name).stat().st_mtime_ns for name in files(home.home)} == before


def test_an_unusable_home_is_a_plain_error(tmp_path: Path, check: Check) -> None:
    (tmp_path / "file").write_text("not a folder")
    home = HomePaths(tmp_path / "file" / "home")
    with pytest.raises(HomeError, match="OPD_HOME"):
        Runs(Settings(home), Roots.of(home.home), preflight=check).start(config())
    assert files(tmp_path) == ["file"]


def test_a_configuration_that_cannot_be_written_leaves_no_run(
    runs: Runs, home: HomePaths, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opd_core.control.queueing.write_whole", full)
    with pytest.raises(HomeError, match="No space left"):
        runs.start(config())
    assert store.list() == []
    assert files(home.home / "configs") == [] and files(home.locks) == []


# --- comparisons


def test_what_a_comparison_is_warned_of_is_told_at_its_start_and_kept(
    runs: Runs, compared: Callable[..., ComparisonSpec]
) -> None:
    row = runs.start_comparison(compared(judge=True, judge_budget_usd=1.0))
    assert row.message == "the month is nearly used up"
    told = [event.message for event in runs.events(row.run_id) if event.kind == "warning"]
    assert told == ["the month is nearly used up"]
    assert runs.start_comparison(compared()).message == ""


def test_a_comparison_is_a_job_in_the_same_queue(runs: Runs, compared: Callable[..., ComparisonSpec]) -> None:
    row = runs.start_comparison(compared())
    assert row.run_id.startswith("cmp_")
    assert (row.kind, row.state, row.queue_position, row.total_steps) == ("comparison", "queued", 2, 0)
    assert ComparisonSpec.model_validate(row.config).job_id == row.run_id


def test_a_comparison_reads_no_adapter_outside_the_roots(
    runs: Runs, compared: Callable[..., ComparisonSpec], tmp_path: Path
) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    with pytest.raises(PathError, match="outside"):
        runs.start_comparison(compared(str(outside)))
    job = runs.start_comparison(compared())
    with pytest.raises(StateError, match="is a comparison"):
        runs.start_comparison(compared().model_copy(update={"run_id": job.run_id}))
    assert len(runs.list()[0]) == 2


def test_a_comparison_with_a_costly_judge_needs_the_users_yes(
    runs: Runs, compared: Callable[..., ComparisonSpec]
) -> None:
    judged = compared(judge=True, judge_budget_usd=9.0)
    with pytest.raises(ConfirmationNeededError, match=r"\$9\.00"):
        runs.start_comparison(judged)
    assert len(runs.list()[0]) == 1
    assert runs.start_comparison(judged, confirmed=True).kind == "comparison"
