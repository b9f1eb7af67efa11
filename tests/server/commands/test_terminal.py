"""What a person sees: plain lines without a terminal, a bar with one, every evaluation once."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from opd_core.config import parse_config
from opd_core.errors import ConfirmationNeededError
from opd_core.state.rows import RunRow
from server.answers.status import run_status
from server.commands.terminal import RunView, follow, print_run, start
from tests.server.protocol.test_confirm import QUESTION, Costly
from tests.server.records import BASELINE, BEST, CONFIG, completed, make_row


def shown(rows: list[RunRow], is_terminal: bool = False) -> str:
    output = io.StringIO()
    console = Console(file=output, width=200, force_terminal=is_terminal, force_interactive=is_terminal)
    left = [run_status(row) for row in rows]
    follow(lambda: left.pop(0), RunView(console), sleep=lambda seconds: None)
    return output.getvalue()


RUN = [
    make_row(step=0, state="preparing", phase="preparing", latest_metrics=None, baseline_eval=None),
    make_row(step=0, phase="baseline_eval", latest_metrics=None, baseline_eval=None),
    make_row(step=1, latest_metrics={"kl_loss": 0.7}, baseline_eval=BASELINE, latest_eval=BASELINE),
    make_row(step=1, latest_metrics={"kl_loss": 0.7}, baseline_eval=BASELINE, latest_eval=BASELINE),
    make_row(step=29, latest_metrics={"kl_loss": 0.1, "tokens_per_second": 50.0}),
    completed(latest_eval=BEST),
]


def test_without_a_terminal_a_run_is_a_few_plain_lines() -> None:
    lines = shown(RUN).splitlines()
    assert lines == [
        "preparing …",
        "baseline eval …",
        "step 1 of 30: rollout, KL loss 0.7",
        "held-out: step 0, reverse KL 0.83, task score 0 %, 40 prompts",
        "step 29 of 30: rollout, KL loss 0.1, 50 tokens/s",
        "step 30 of 30: rollout, KL loss 0.426, 55.6 tokens/s",
        "held-out: step 30, reverse KL 0.031, task score 97.5 %, 40 prompts",
    ]


def test_a_long_run_prints_only_some_of_its_steps() -> None:
    rows = [make_row(step=step, total_steps=1000, baseline_eval=None) for step in range(1, 1000)]
    assert len(shown([*rows, completed(total_steps=1000, step=1000)]).splitlines()) < 50


def test_with_a_terminal_there_is_a_bar_and_no_step_lines() -> None:
    text = shown(RUN, is_terminal=True)
    assert "30/30" in text and "step 29 of 30" not in text
    assert text.count("held-out: step 0") == 1


def test_text_of_a_run_is_not_read_as_markup() -> None:
    output = io.StringIO()
    row = make_row(state="failed", error_message="[bold]no[/bold] memory")
    print_run(run_status(row), RunView(Console(file=output, width=200)))
    assert "[bold]no[/bold] memory" in output.getvalue()


@pytest.mark.parametrize(("typed", "started"), [("y", True), ("YES", True), ("", False), ("n", False)])
def test_a_person_at_a_terminal_is_asked_before_a_costly_run(
    typed: str, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, output = Costly(), io.StringIO()
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return typed

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{typed}\n"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    row = start(cases, parse_config(CONFIG), RunView(Console(file=output, width=200)))
    assert QUESTION in output.getvalue() and asked == ["Start it? [y/N] "]
    assert (row is not None, cases.started) == (started, [True] if started else [])


def test_without_a_terminal_a_costly_run_is_refused_unless_its_file_says_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases, view = Costly(), RunView(Console(file=io.StringIO()))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(ConfirmationNeededError, match="confirmed true"):
        start(cases, parse_config(CONFIG), view)
    assert start(cases, parse_config({**CONFIG, "confirmed": True}), view) is not None
