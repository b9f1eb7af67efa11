from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opd_core.comparison import Candidate, ComparisonSpec
from opd_core.config import RunConfig, parse_config
from opd_core.config_io import read_config
from opd_core.control.logs import log_tail
from opd_core.control.preflight.checking import CheckedComparison, Preflight
from opd_core.control.processes import try_lock
from opd_core.control.queueing import NewJobs
from opd_core.control.runs import Runs
from opd_core.control.supervisor import Supervisor
from opd_core.errors import (
    BudgetFrozenError,
    ConfigError,
    ConfirmationNeededError,
    HomeError,
    PathError,
    PromptFileError,
    RunNotFoundError,
    StateError,
)
from opd_core.model_files import ModelInfo
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths, write_json
from opd_core.roots import Roots
from opd_core.run_prompts import RunPrompts
from opd_core.settings import Settings
from opd_core.state.store import RunStore
from tests.opd_core.control.scripted_worker import COMMAND, Orders
from tests.waiting import wait_until

DOLLAR = 10**12


class Check:
    """A preflight that accepts everything, or refuses when told to; remembers what it was asked."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.warnings: tuple[str, ...] = ()
        self.asked: list[RunConfig] = []

    def __call__(self, config: RunConfig, roots: Roots, settings: Settings) -> Preflight:
        self.asked.append(config)
        if self.refusal is not None:
            raise self.refusal
        resolved = config.model_copy(update={"method": "kl"})
        model = ModelInfo.__new__(ModelInfo)
        return Preflight(resolved, model, None, None, RunPrompts([], [], ()), self.warnings)


@pytest.fixture
def check() -> Check:
    return Check()


@pytest.fixture
def store(home: HomePaths) -> RunStore:
    return RunStore(home.database)


def check_adapter_paths(spec: ComparisonSpec, _: RunConfig, roots: Roots, settings: Settings) -> CheckedComparison:
    """Looks at the adapters' paths alone: these tests have no model and no prompts."""
    for candidate in spec.candidates:
        if candidate.adapter_path is not None:
            roots.check(candidate.adapter_path, "adapter_path", "folder")
    return CheckedComparison(spec, ("the month is nearly used up",) if spec.judge else ())


@pytest.fixture
def runs(home: HomePaths, store: RunStore, check: Check) -> Runs:
    """Runs whose workers follow orders (and finish at once without any)."""
    roots, supervisor = Roots.of(home.home), Supervisor(home, store, COMMAND)
    return Runs(Settings(home), roots, supervisor=supervisor, preflight=check, comparison_preflight=check_adapter_paths)


@pytest.fixture
def busy(home: HomePaths) -> Iterator[None]:
    """Some other job has the device, so that nothing that is started leaves the queue."""
    lock = try_lock(home.device_lock)
    assert lock is not None
    yield
    os.close(lock)


def config(**changes: Any) -> RunConfig:
    return parse_config({"base_model_path": "/models/tiny", "prompts_path": "/data/prompts.jsonl", **changes})


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def end(store: RunStore, run_id: str, state: str = "interrupted", **columns: Any) -> None:
    """Let a queued run start and end without a worker."""
    epoch = store.claim(run_id)
    store.heartbeat(run_id, epoch, **columns)
    store.finish(run_id, state, "error", epoch=epoch, message="")  # type: ignore[arg-type]


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


# --- status, list, metrics


def test_asking_about_an_unused_home_makes_nothing(runs: Runs, home: HomePaths) -> None:
    for ask in (runs.status, runs.stop, runs.resume, runs.metrics):
        with pytest.raises(RunNotFoundError):
            ask()
    assert runs.list() == ([], None)
    assert not home.home.exists()


def test_a_status_call_starts_what_waits(runs: Runs, home: HomePaths, store: RunStore) -> None:
    home.prepare()
    store.create("waits", "distillation", {})
    runs.status("waits")
    assert store.get("waits").epoch == 1
    wait_until(lambda: store.get("waits").state == "completed", 20)


def test_a_dead_run_shows_the_end_of_its_log_escaped(runs: Runs, home: HomePaths, store: RunStore) -> None:
    home.prepare()
    store.create("dead", "distillation", {}, total_steps=30)
    store.claim("dead")
    home.log("dead").write_text("first\n" * 20 + "\x1b[31mSegmentation fault\x1b[0m\n\n")
    row = runs.status("dead")
    assert row.state == "interrupted"
    assert len(row.last_log_lines) == 10
    assert row.last_log_lines[-1] == "\\x1b[31mSegmentation fault\\x1b[0m"


def test_a_log_tail_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    assert log_tail(path) == ()
    path.write_bytes(b"x" * 1_000_000 + b"\xff\n" + "größer\n".encode() * 3)
    lines = log_tail(path)
    assert lines[1:] == ("größer",) * 3
    assert sum(len(line) for line in lines) < 1000


@pytest.mark.usefixtures("busy")
def test_lists_are_paged_by_a_cursor(runs: Runs) -> None:
    ids = [runs.start(config()).run_id for _ in range(5)]
    seen, cursor = list[str](), None
    while True:
        rows, cursor = runs.list(limit=2, cursor=cursor)
        seen += [row.run_id for row in rows]
        if cursor is None:
            break
    assert seen == ids[::-1]
    with pytest.raises(ConfigError, match="cursor"):
        runs.list(cursor="1; DROP TABLE runs")


@pytest.mark.usefixtures("busy")
def test_metrics_are_read_by_any_name_of_the_run(runs: Runs, store: RunStore) -> None:
    run_id = runs.start(config()).run_id
    epoch = store.claim(run_id)
    for step in range(1, 6):
        store.append_metrics(run_id, epoch, "train", {"step": step}, step=step)
    assert [line["step"] for line in runs.metrics()] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in runs.metrics(run_id[:-1], "train", 1, 2)] == [2, 5]
    assert runs.metrics(run_id, "eval") == []


# --- stop and resume


def test_a_stopped_run_resumes_with_more_steps(runs: Runs, home: HomePaths, store: RunStore) -> None:
    home.prepare()
    orders = Orders(home, "mine")
    runs.start(config(run_id="mine", num_training_steps=10))
    orders.send("step", "step")
    wait_until(lambda: store.get("mine").step == 2, 20)
    assert runs.stop("mine", 10).state == "stopped"
    row = runs.resume("mine", num_training_steps=20)
    assert (row.step, row.total_steps) == (2, 20)
    assert read_config(home.config("mine")).num_training_steps == 20
    orders.send("step", "finish")
    wait_until(lambda: store.get("mine").state == "completed", 20)
    done = runs.status("mine")
    assert (done.step, done.epoch) == (3, 2)
    orders.close()


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("state", ["stopped", "failed", "interrupted"])
def test_a_run_that_ended_early_can_be_resumed(runs: Runs, store: RunStore, state: str) -> None:
    runs.start(config(run_id="mine"))
    end(store, "mine", state)
    row = runs.resume()
    assert (row.run_id, row.state, row.end_reason) == ("mine", "queued", None)


@pytest.mark.usefixtures("busy")
def test_what_is_not_over_or_is_complete_cannot_be_resumed(runs: Runs, store: RunStore) -> None:
    runs.start(config(run_id="mine"))
    with pytest.raises(StateError, match=r"mine is queued already.*Follow it with get_status"):
        runs.resume("mine")
    end(store, "mine", "completed", final_adapter_path="/checkpoints/mine")
    with pytest.raises(StateError, match=r"completed.*student_adapter_path /checkpoints/mine"):
        runs.resume("mine")


@pytest.mark.usefixtures("busy")
def test_a_run_that_is_stopping_can_be_resumed_when_it_has_stopped(
    runs: Runs, home: HomePaths, store: RunStore
) -> None:
    runs.start(config(run_id="mine"))
    epoch, alive = store.claim("mine"), try_lock(home.run_lock("mine"))
    assert alive is not None
    store.request_stop("mine")
    with pytest.raises(StateError, match=r"mine is stopping.*then resume it"):
        runs.resume("mine")
    store.finish("mine", "stopped", "by_user", epoch=epoch, message="")
    os.close(alive)
    assert runs.resume("mine").state == "queued"


@pytest.fixture
def raced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another call resumes the run between a resume's look at its state and its own change."""
    requeue = RunStore.requeue

    def requeue_twice(self: RunStore, run_id: str, **changed: Any) -> None:
        requeue(self, run_id, **changed)
        requeue(self, run_id, **changed)

    monkeypatch.setattr(RunStore, "requeue", requeue_twice)


@pytest.mark.usefixtures("busy", "raced")
def test_of_two_resumes_at_once_the_loser_is_told_that_the_run_is_going_again(runs: Runs, store: RunStore) -> None:
    runs.start(config(run_id="mine"))
    end(store, "mine")
    with pytest.raises(StateError, match=r"^mine is queued already.*another call.*Follow it with get_status"):
        runs.resume("mine")
    assert store.get("mine").state == "queued"


@pytest.mark.usefixtures("busy")
def test_a_resume_cannot_shorten_a_run(runs: Runs, store: RunStore) -> None:
    runs.start(config(run_id="mine", num_training_steps=10))
    end(store, "mine")
    with pytest.raises(ConfigError, match="9 is less than the run's 10"):
        runs.resume("mine", num_training_steps=9)
    assert store.get("mine").state == "interrupted"


@pytest.mark.usefixtures("busy")
def test_a_larger_budget_needs_confirmation_and_passes_the_ceiling_check(
    runs: Runs, store: RunStore, check: Check
) -> None:
    runs.start(config(run_id="mine", max_budget_usd=5.0))
    end(store, "mine")
    with pytest.raises(ConfigError, match="confirmed true"):
        runs.resume("mine", max_budget_usd=7)
    check.refusal = ConfigError("max_budget_usd 7 is above OPD_MAX_BUDGET_USD.")
    with pytest.raises(ConfigError, match="OPD_MAX_BUDGET_USD"):
        runs.resume("mine", max_budget_usd=7, confirmed=True)
    check.refusal = None
    assert runs.resume("mine", max_budget_usd=7, confirmed=True).config["max_budget_usd"] == 7.0


# --- comparisons


@pytest.fixture
def compared(runs: Runs, busy: None) -> Callable[..., ComparisonSpec]:
    """A specification for a comparison on the run `opd_source`."""
    runs.start(config(run_id="opd_source"))

    def spec(*adapters: str | None, **changes: Any) -> ComparisonSpec:
        candidates = tuple(Candidate(name=f"c{index}", adapter_path=path) for index, path in enumerate(adapters))
        return ComparisonSpec(run_id="opd_source", candidates=candidates or (Candidate(name="base"),), **changes)

    return spec


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


def test_only_a_completed_comparison_has_a_result(
    runs: Runs, compared: Callable[..., ComparisonSpec], store: RunStore, home: HomePaths
) -> None:
    job_id = runs.start_comparison(compared()).run_id
    with pytest.raises(StateError, match="state queued"):
        runs.comparison_result(job_id)
    write_json(home.result(job_id), {"rows": []})
    end(store, job_id, "completed", result_path=str(home.result(job_id)))
    assert runs.comparison_result(job_id) == {"rows": []}
    with pytest.raises(StateError, match="is a distillation"):
        runs.comparison_result("opd_source")


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/etc/hostname"), Path.mkdir])
def test_what_stands_in_the_place_of_a_result_is_named_and_hangs_nobody(
    runs: Runs,
    compared: Callable[..., ComparisonSpec],
    store: RunStore,
    home: HomePaths,
    put: Callable[[Path], None],
) -> None:
    job_id = runs.start_comparison(compared()).run_id
    home.result(job_id).parent.mkdir()
    put(home.result(job_id))
    end(store, job_id, "completed", result_path=str(home.result(job_id)))
    with pytest.raises(StateError, match=f"The result of {job_id} cannot be read \\((a part|it is)"):
        runs.comparison_result(job_id)


def test_an_interrupted_comparison_can_be_run_again(
    runs: Runs, compared: Callable[..., ComparisonSpec], store: RunStore
) -> None:
    job_id = runs.start_comparison(compared()).run_id
    end(store, job_id)
    for changes in ({"max_budget_usd": 9.0, "confirmed": True}, {"num_training_steps": 9}):
        with pytest.raises(ConfigError, match="compare_adapters again with a larger judge_budget_usd"):
            runs.resume(job_id, **changes)
    assert runs.resume(job_id).state == "queued"


# --- paid teachers


def paid(**changes: Any) -> RunConfig:
    return config(teacher_kind="claude", run_id="mine", max_budget_usd=5.0, confirmed=True, **changes)


def ledger_of(home: HomePaths) -> Ledger:
    return Ledger(home.database, month_limit_pico=100 * DOLLAR)


@pytest.mark.usefixtures("busy")
def test_a_paid_run_tells_how_its_budget_stands(runs: Runs, home: HomePaths, store: RunStore) -> None:
    row = runs.start(paid())
    assert (row.budget_usd, row.spent_usd, row.reserved_usd, row.budget_warning) == (5.0, 0.0, 0.0, False)
    ledger = ledger_of(home)
    ledger.open_budget("mine", 5 * DOLLAR)
    call = ledger.reserve("mine", "key", "m", "v", 3 * DOLLAR, "mine:1", is_batch=True)
    ledger.settle(call, 3 * DOLLAR, "{}", None, None)
    assert not runs.status("mine").budget_warning
    ledger.reserve("mine", "another", "m", "v", DOLLAR, "mine:1", is_batch=True)
    row = runs.status("mine")
    assert (row.spent_usd, row.reserved_usd, row.budget_warning, row.budget_exceeded) == (3.0, 1.0, True, False)
    assert runs.list()[0] == [row]
    store.finish("mine", "stopped", "budget", epoch=store.claim("mine"), message="")
    assert runs.status("mine").budget_exceeded


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("is_month", [False, True])
def test_a_run_that_a_freeze_stopped_is_frozen_and_has_not_exceeded_its_budget(
    runs: Runs, home: HomePaths, store: RunStore, is_month: bool
) -> None:
    runs.start(paid())
    ledger = ledger_of(home)
    for run_id in ("mine", "other"):
        ledger.open_budget(run_id, 5 * DOLLAR)
    dear = ledger.reserve("other" if is_month else "mine", "key", "m", "v", DOLLAR, "mine:1", is_batch=True)
    ledger.forfeit(dear, "a reply without a price", freeze=True)
    with pytest.raises(BudgetFrozenError) as frozen:
        ledger.reserve("mine", "another", "m", "v", DOLLAR, "mine:1", is_batch=True)
    store.finish(
        "mine", "stopped", "budget", epoch=store.claim("mine"), message=f"{frozen.value} Stopped after step 2."
    )
    row, month = runs.status("mine"), ledger.month_totals().scope
    assert (row.stopped_by_freeze, row.budget_exceeded) == (True, False)
    assert row.frozen_budgets == ((month,) if is_month else ("mine", month))
    for scope in row.frozen_budgets:
        ledger.unfreeze(scope, "seen", "Ada")
    assert runs.status("mine").frozen_budgets == () and runs.status("mine").stopped_by_freeze


@pytest.mark.usefixtures("busy")
def test_a_local_run_has_no_budget(runs: Runs) -> None:
    row = runs.start(config())
    assert (row.budget_usd, row.spent_usd, row.budget_warning) == (None, 0.0, False)


@pytest.mark.usefixtures("busy")
def test_a_confirmed_resume_raises_the_ledgers_limit_and_a_refused_one_does_not(
    runs: Runs, home: HomePaths, store: RunStore, check: Check
) -> None:
    runs.start(paid())
    ledger = ledger_of(home)
    ledger.open_budget("mine", 5 * DOLLAR)
    end(store, "mine", "stopped")
    with pytest.raises(ConfigError, match="confirmed true"):
        runs.resume("mine", max_budget_usd=7)
    check.refusal = ConfigError("above OPD_MONTHLY_BUDGET_USD")
    with pytest.raises(ConfigError, match="MONTHLY"):
        runs.resume("mine", max_budget_usd=7, confirmed=True)
    assert ledger.totals("mine").limit_pico == 5 * DOLLAR
    check.refusal = None
    assert runs.resume("mine", max_budget_usd=7, confirmed=True).budget_usd == 7.0
    assert ledger.totals("mine").limit_pico == 7 * DOLLAR


@pytest.mark.usefixtures("busy")
def test_a_run_cancelled_before_it_had_a_budget_resumes_with_a_larger_one(runs: Runs, home: HomePaths) -> None:
    runs.start(paid())
    runs.stop("mine")
    assert runs.resume("mine", max_budget_usd=7, confirmed=True).budget_usd == 7.0
    assert ledger_of(home).totals("mine").limit_pico == 0, "its worker opens the budget"


@pytest.mark.usefixtures("busy")
def test_a_probe_is_a_job_with_a_result_of_its_own(runs: Runs, store: RunStore, home: HomePaths) -> None:
    with pytest.raises(ConfigError, match="teacher_kind 'claude'"):
        runs.start_probe(config())
    request = config(teacher_kind="claude", max_budget_usd=5.0, confirmed=True, client_request_id="once")
    row = runs.start_probe(request)
    assert (row.kind, row.total_steps, row.budget_usd) == ("probe", 0, 5.0) and row.run_id.startswith("prb_")
    assert runs.start_probe(request).run_id == row.run_id
    with pytest.raises(StateError, match="only a completed probe"):
        runs.probe_result(row.run_id)
    write_json(home.result(row.run_id), {"levels": []})
    end(store, row.run_id, "completed", result_path=str(home.result(row.run_id)))
    assert runs.probe_result(row.run_id) == {"levels": []}
    with pytest.raises(StateError, match="is a probe"):
        runs.comparison_result(row.run_id)
