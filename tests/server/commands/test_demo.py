"""The demo's words: computed from results, and settings that a start accepts."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from opd_core.config import parse_config
from server.commands.demo import DEMO_SETTINGS, Demo
from server.commands.demo_report import closing_words, comparison_table, goals_line, sample_lines
from server.commands.terminal import RunView
from server.schemas.jobs import CompareAnswer
from server.settings import read_settings


def figure(mean: float | None) -> dict[str, Any] | None:
    return None if mean is None else {"mean": mean, "low": 0.0, "high": 1.0, "samples": 40}


def comparison(before: float, after: float, kl_before: float, kl_after: float, teacher: float) -> CompareAnswer:
    rows = [
        {
            "name": name,
            "adapter_path": None,
            "error": None,
            "verdict": verdict,
            "task_score": figure(score),
            "reverse_kl": figure(kl),
            "teacher_agreement_pct": None,
            "completion_tokens": figure(18.0),
            "truncation_rate": 0.0,
            "repetition_rate": 0.0,
            "versus_reference": None,
        }
        for name, score, kl, verdict in [("base", before, kl_before, None), ("distilled", after, kl_after, "better")]
    ]
    return CompareAnswer.model_validate(
        {
            "summary": "s",
            "next_step": "n",
            "status": "completed",
            "job_id": "cmp_1",
            "run_id": "opd_1",
            "state": "completed",
            "held_out_prompts": 40,
            "primary_metric": "task_score",
            "reference": "base",
            "teacher_task_score": figure(teacher),
            "rows": rows,
            "samples": [
                {"prompt": "it's late", "reference": None, "answers": {"base": "Yes.\nIt is."}, "teacher": "{}"}
            ],
            "timeout_applied_s": 20.0,
        }
    )


GOOD = (0.025, 0.975, 0.83, 0.03, 1.0)


def test_goals_are_met_when_every_figure_reaches_its_goal() -> None:
    line = goals_line(comparison(*GOOD))
    assert line.startswith("Goals met:") and "97.5 %" in line and "reverse KL down by 96.4 %" in line
    assert "missed" not in line


@pytest.mark.parametrize(
    ("position", "value", "missed"),
    [
        (0, 0.125, "held-out success before 12.5 % (goal at most 10 %, missed)"),
        (1, 0.875, "after 87.5 % (goal at least 90 %, missed)"),
        (3, 0.2, "reverse KL down by 75.9 % (goal at least 80 %, missed)"),
        (4, 0.9, "teacher's own success 90 % (goal at least 95 %, missed)"),
    ],
)
def test_a_goal_that_was_missed_is_named(position: int, value: float, missed: str) -> None:
    figures = list(GOOD)
    figures[position] = value
    line = goals_line(comparison(*figures))
    assert line.startswith("Goals not all met:") and missed in line and line.count("missed") == 1


def test_the_table_shows_the_teacher_as_the_ceiling() -> None:
    output = io.StringIO()
    Console(file=output, width=160).print(comparison_table(comparison(*GOOD)))
    assert "teacher (ceiling)" in output.getvalue() and "97.5 %" in output.getvalue()


def test_the_line_to_try_the_adapter_survives_a_shell(tmp_path: Path) -> None:
    lines = closing_words(comparison(*GOOD), tmp_path / "my models", "/home/a b/checkpoints/opd_1")
    (command,) = [line for line in lines if "mlx_lm generate" in line]
    words = shlex.split(command)
    assert words[words.index("--model") + 1] == str(tmp_path / "my models")
    assert words[words.index("--adapter-path") + 1] == "/home/a b/checkpoints/opd_1"
    assert words[words.index("--prompt") + 1] == "it's late"


def test_sample_answers_stay_on_one_line() -> None:
    assert sample_lines(comparison(*GOOD)) == ["Prompt: it's late", "  base: Yes. It is."]


def test_the_demo_asks_for_a_configuration_that_is_valid(tmp_path: Path) -> None:
    settings = read_settings({"OPD_HOME": str(tmp_path)})
    config = parse_config(Demo(RunView(Console(file=io.StringIO())), settings).configuration())
    assert config.num_training_steps == DEMO_SETTINGS["num_training_steps"]
    assert config.teacher_system_prompt or config.teacher_examples
    assert config.check is not None
    assert config.prompts_path is not None and Path(config.prompts_path).is_relative_to(tmp_path)


def test_leaving_the_demo_says_how_to_see_the_run() -> None:
    output = io.StringIO()
    demo = Demo(RunView(Console(file=output, width=200)), read_settings({"OPD_HOME": "/nowhere"}), run_id="opd_7")
    demo.say_goodbye()
    assert "opd status opd_7" in output.getvalue()
