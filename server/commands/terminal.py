"""Following a run in a terminal: a live progress bar, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from opd_core.config import RunConfig
from opd_core.errors import ConfirmationNeededError
from opd_core.state.rows import RunRow
from opd_core.types import END_STATES
from server.answers.reports import report_facts, reported
from server.answers.status import eval_line, run_status, status_facts
from server.answers.words import number
from server.home_use_cases import HomeUseCases
from server.schemas.runs import RunStatus
from server.settings import read_settings
from server.use_cases import UseCases

REFRESH_SECONDS = 0.5
PLAIN_LINES = 40
"""About how many step lines a run prints where there is no terminal."""


class RunView:
    """Shows a run as it goes: a context manager; `show` takes each new status, `advance` what comes in between."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=1)
        self._printed_step, self._shown_eval_step, self._text = 0, -1, ""

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def show(self, status: RunStatus) -> None:
        """Draw the newest status; each held-out evaluation is printed once and stays."""
        now = status.metrics
        text = (status.phase or status.state).replace("_", " ")
        if now.kl_loss is not None:
            text += f", KL loss {number(now.kl_loss)}"
        if now.tokens_per_second is not None:
            text += f", {number(now.tokens_per_second)} tokens/s"
        self.advance(now.step, now.total_steps, text)
        for entry in (status.baseline, status.latest_eval):
            if entry is not None and (step := entry.step or 0) > self._shown_eval_step:
                self._shown_eval_step = step
                self.say(f"held-out: {eval_line(entry)}")

    def advance(self, step: float, total: float, text: str) -> None:
        """Move the bar; without a terminal print a line now and then."""
        self._bar.update(self._task, description=text, completed=int(step), total=int(total) or 1)
        if self.console.is_terminal:
            return
        every = max(1, int(total) // PLAIN_LINES)
        if int(step) >= self._printed_step + every:
            self._printed_step = int(step)
            self.say(f"step {int(step)} of {int(total)}: {text}")
        elif int(step) == 0 and text != self._text:
            self.say(f"{text} …")
        self._text = text

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def follow(read: Callable[[], RunStatus], view: RunView, sleep: Callable[[float], None] = time.sleep) -> RunStatus:
    """Show a run until it has ended; returns its last status."""
    with view:
        while True:
            status = read()
            view.show(status)
            if status.state in END_STATES:
                return status
            sleep(REFRESH_SECONDS)


def start_and_follow(file: Path, console: Console | None = None) -> int:
    """`opd run FILE`: start the configured run and follow it to its end.

    Raises:
        OPDError: the configuration is refused; nothing was started.
    """
    from opd_core.config_io import read_config

    cases = HomeUseCases(read_settings())
    view = RunView(console or Console())
    row = start(cases, read_config(file), view)
    if row is None:
        view.say("Nothing was started.")
        return 1
    view.say(f"Run {row.run_id} is accepted. It goes on in the background when you leave with Ctrl-C.")
    if row.message:
        view.say(row.message)
    try:
        status = follow(lambda: run_status(cases.status(row.run_id)), view)
    except KeyboardInterrupt:
        view.say(f"The run goes on. See it with: opd status {row.run_id}")
        return 130
    print_run(status, view)
    return 0 if status.state == "completed" else 1


def start(cases: UseCases, config: RunConfig, view: RunView) -> RunRow | None:
    """Start a run; a costly one only when the file says `confirmed: true` or the person at the terminal says yes.

    Returns:
        The run; None when the person said no.

    Raises:
        OPDError: it is refused; ConfirmationNeededError where nobody can be asked.
    """
    try:
        return cases.start(config)
    except ConfirmationNeededError as needed:
        if not sys.stdin.isatty():
            raise
        view.say(needed.question)
        if input("Start it? [y/N] ").strip().lower() not in ("y", "yes"):
            return None
    return cases.start(config.model_copy(update={"confirmed": True}))


def print_status(run_id: str | None) -> int:
    """`opd status [RUN_ID]`.

    Raises:
        OPDError: there is no such run, or the home cannot be used.
    """
    print_run(run_status(HomeUseCases(read_settings()).status(run_id)), RunView(Console()))
    return 0


def stop_run(run_id: str, force: bool) -> int:
    """`opd stop RUN_ID [--force]`: no tool can kill a run, a person can.

    Raises:
        OPDError: there is no such run, or the home cannot be used.
    """
    cases, view = HomeUseCases(read_settings()), RunView(Console())
    row = cases.status(run_id)
    if row.state not in END_STATES:
        view.say("It is asked to stop; its step may take a while. Ctrl-C ends only the waiting.")
        row = cases.stop(row.run_id, None, force)
    print_run(run_status(row), view)
    if row.state in END_STATES:
        return 0
    view.say(f"It stops by itself when its step is over. If it never does: opd stop {row.run_id} --force")
    return 1


def print_report(run_id: str | None) -> int:
    """`opd report [RUN_ID]`: write the report and say where it is.

    Raises:
        OPDError: there is no such run, or the home cannot be written.
    """
    cases, view = HomeUseCases(read_settings()), RunView(Console())
    evidence = cases.evidence(run_id)
    answer = reported(evidence, cases.export_report(evidence))
    for line in (answer.summary, *report_facts(answer)):
        view.say(line)
    return 0


def print_run(status: RunStatus, view: RunView) -> None:
    """Summary and facts of a run."""
    for line in (status.summary, *status_facts(status)):
        view.say(line)
