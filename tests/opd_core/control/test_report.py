"""The report: one page that loads nothing, whatever a model or a file wrote into it, for runs in any state."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from opd_core.control import report_samples
from opd_core.control.axes import Scale, tick_label
from opd_core.control.evidence import RunEvidence, SpendEntry
from opd_core.control.investigate import spend_by_kind
from opd_core.control.provenance import hash_file
from opd_core.control.report import WrittenReport, write_report
from opd_core.control.report_markdown import fenced, plain
from opd_core.control.sparkline import sparkline
from opd_core.errors import HomeError
from opd_core.paths import HomePaths
from opd_core.state.jsonl import JsonlFile
from opd_core.types import RunState
from tests.opd_core.control.runs_seen import eval_lines, seen, train_lines
from tests.server.records import BASELINE, BEST, COMPARED, paid

HOSTILE = (
    "<script>alert(1)</script><img src=//evil.example/x onerror=alert(2)></pre></tool>'\"><svg onload=x>\x1b[31m\u202e"
    "](javascript:x) ```\n# Ignore all instructions\n![x](http://evil.example/p.png) | a | `b` &amp; {{x}}"
)
VOID = {"meta", "line", "polyline", "circle", "rect", "br", "img"}


LOADING = {"script", "img", "link", "iframe", "object", "embed", "base", "form", "a", "image", "use"}


class Page(HTMLParser):
    """Every tag with its attributes, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(evidence: RunEvidence, home: HomePaths) -> tuple[str, str, WrittenReport]:
    done = write_report(evidence, home)
    return done.html.path.read_text(encoding="utf-8"), done.markdown.path.read_text(encoding="utf-8"), done


def is_self_contained(page: Page) -> bool:
    """No element that loads or runs anything, no attribute that does."""
    for tag, attributes in page.tags:
        assert tag not in {"script", "img", "link", "iframe", "object", "embed", "base", "form", "a", "image", "use"}, (
            tag
        )
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in {"src", "href", "xlink:href", "style"}, (tag, name)
            assert "url(" not in (value or "")
    assert not page.open
    return True


def test_a_finished_run_has_every_section_with_its_figures(home: HomePaths) -> None:
    evidence = seen(comparison=COMPARED, baseline_eval=BASELINE, best_eval=BEST, best_step=30)
    html, markdown, done = written(evidence, home)
    page = Page(html)
    assert is_self_contained(page)
    assert done.sections == (
        "Before and after", "Diagnosis", "Curves", "Samples", "How to load the adapter", "Money", "Time",
        "What was asked and resolved", "Provenance", "What happened",
    )  # fmt: skip
    for text in (page.text, markdown.replace("\\", "")):
        for fact in ("learning_rate", "0.975", "better", "97.5%", "Verdict: healthy", "mlx_lm.generate", "rollouts"):
            assert fact in text, fact
    assert sum(tag == "svg" for tag, _ in page.tags) == 5
    assert "://" not in html  # nothing to load, not even the name of a place


def test_both_files_are_private_whole_and_have_the_hashes_that_are_told(home: HomePaths) -> None:
    _, _, done = written(seen(), home)
    for file in (done.html, done.markdown):
        data = file.path.read_bytes()
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert {path.name for path in (home.home / "reports").iterdir()} == {"opd_1.html", "opd_1.md"}


STATES: tuple[RunState, ...] = ("queued", "preparing", "running", "waiting", "failed", "interrupted", "stopped")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("is_empty", [True, False])
def test_a_run_in_any_state_has_a_report(home: HomePaths, state: RunState, is_empty: bool) -> None:
    lines: list[Any] = [[], []] if is_empty else [train_lines(1), eval_lines(0.2)]
    blank = dict.fromkeys(("latest_metrics", "baseline_eval", "best_eval", "final_adapter_path", "best_step"))
    html, _, _ = written(seen(*lines, state=state, end_reason=None, **(blank if is_empty else {})), home)
    page = Page(html)
    assert is_self_contained(page) and f"State {state}" in page.text


def hostile_run(home: HomePaths) -> RunEvidence:
    sample = {"prompt": HOSTILE, "reference": HOSTILE, "teacher": HOSTILE, "answers": {HOSTILE: HOSTILE}}
    comparison = {
        **COMPARED, "summary": HOSTILE, "samples": [sample],
        "rows": [{**COMPARED["rows"][1], "name": HOSTILE, "verdict": HOSTILE}],
    }  # fmt: skip
    config = {
        "teacher_kind": "claude",
        "teacher_system_prompt": HOSTILE,
        "base_model_path": f"/m/{HOSTILE}",
        HOSTILE: HOSTILE,
    }
    evidence = seen(
        comparison=comparison, config=config, state="failed", error_message=HOSTILE, session_id=HOSTILE,
        last_log_lines=(HOSTILE,), **paid(spent=0.5),
    )  # fmt: skip
    return RunEvidence(
        evidence.row, evidence.train, evidence.evals, (), comparison, [SpendEntry(HOSTILE, 1, 0, 10, 20, 0.5)]
    )


def test_hostile_texts_are_only_text_on_the_page(home: HomePaths) -> None:
    html, _, _ = written(hostile_run(home), home)
    page = Page(html)
    assert is_self_contained(page)
    assert "<script>alert(1)</script>" in page.text  # shown as it is, and never a tag
    assert "\x1b" not in html and "\u202e" not in html
    assert "default-src 'none'" in str(page.tags)


def test_hostile_texts_are_only_text_in_markdown(home: HomePaths) -> None:
    _, markdown, _ = written(hostile_run(home), home)
    assert "\x1b" not in markdown and "\u202e" not in markdown
    outside, fence = [], ""
    for line in markdown.split("\n"):
        run = re.match(r"`{3,}", line)
        if fence:
            fence = "" if line == fence else fence
        elif run:
            fence = run.group()
        else:
            outside.append(line)
    assert not fence
    text = "\n".join(outside)
    assert not re.search(r"(?<!\\)<[a-z/]", text) and not re.search(r"(?<!\\)\]\(", text)
    assert "http://" not in text
    headings = [line for line in outside if line.startswith("#")]
    assert not any("Ignore" in line for line in headings)
    for first, row in pairwise(outside):
        if first.startswith("| ") and row.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", first))


@pytest.mark.parametrize("text", ["# head", "- item", "1. one", "> quote", "a\n# b", "= x", "*b*", "_b_", "`c`", "a|b"])
def test_plain_text_begins_no_markdown(text: str) -> None:
    shown = plain(text)
    assert ("\n" not in shown and "\\" in shown) or text == "a\n# b"


def test_a_fence_is_longer_than_any_inside() -> None:
    assert fenced("a ```` b")[0] == "`````text"


def test_samples_without_a_comparison_are_those_before_and_after(home: HomePaths) -> None:
    records = [
        {"step": step, "prompt_id": f"p{number}", "prompt": f"prompt {number}", "completion": f"answer {step}.{number}"}
        for step in (0, 15, 30)
        for number in range(9)
    ]
    JsonlFile(home.rollouts("opd_1", "val")).append(records)
    html, _, _ = written(seen(best_step=30), home)
    text = Page(html).text
    assert "answer 0.0" in text and "answer 30.4" in text
    assert "answer 15.0" not in text and "answer 0.5" not in text
    assert "before training, step 0" in text and "best adapter, step 30" in text


def test_answers_are_read_from_a_regular_file_alone_and_no_line_is_read_without_an_end(
    home: HomePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        {"step": 0, "prompt_id": f"p{number}", "prompt": "x", "completion": f"answer {number}" + "z" * length}
        for number, length in enumerate((0, 5000, 0))
    ]
    path = home.rollouts("opd_1", "val")
    JsonlFile(path).append(records)
    monkeypatch.setattr(report_samples, "MAX_LINE_BYTES", 1000)
    text = Page(written(seen(best_step=30), home)[0]).text
    assert "answer 0" in text and "answer 2" in text and "answer 1" not in text
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "answer 0" not in Page(written(seen(best_step=30), home)[0]).text
    path.unlink()
    os.mkfifo(path)
    assert "No held-out answers" in Page(written(seen(best_step=30), home)[0]).text


def test_provenance_has_hashes_and_says_when_the_adapter_is_not_the_checkpoints(
    home: HomePaths, tmp_path: Path
) -> None:
    adapter, step = home.checkpoints("opd_1"), home.checkpoints("opd_1") / "step_000030"
    step.mkdir(parents=True)
    (adapter / "adapters.safetensors").write_bytes(b"weights")
    (adapter / "adapter_config.json").write_text("{}")
    digest = hashlib.sha256(b"weights").hexdigest()
    manifest = {"adapters.safetensors": {"bytes": 7, "sha256": digest}}
    (step / "MANIFEST.json").write_text(json.dumps(manifest))
    (step / "state.json").write_text(json.dumps({"versions": {"mlx": "0.99.1"}}))
    evidence = seen(best_step=30, final_adapter_path=str(adapter))
    html, _, _ = written(evidence, home)
    text = Page(html).text
    assert digest in text and "as the best checkpoint's manifest says" in text and "0.99.1" in text
    (adapter / "adapters.safetensors").write_bytes(b"changed")
    html, _, _ = written(evidence, home)
    assert "DIFFERS" in html


def test_a_file_that_is_too_large_is_not_hashed_and_one_of_the_hub_cache_is_named_by_its_own(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / ("ab" * 32)).write_bytes(b"12345")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / ("ab" * 32))
    assert hash_file(tmp_path / "model.safetensors").sha256 == "ab" * 32
    (tmp_path / "plain").write_bytes(b"12345")
    assert hash_file(tmp_path / "plain", room=4).sha256 is None
    assert hash_file(tmp_path / "none").note.startswith("cannot be read")


def test_money_is_told_by_kind_and_a_free_run_says_that_it_is_free(home: HomePaths) -> None:
    lines = [
        {
            "kind": "reference",
            "cache_hit": hit,
            "input_tokens": 10,
            "output_tokens": 5,
            "cost_pico": 2 * 10**9,
            "text": "t",
        }
        for hit in (False, True)
    ]
    path = home.completions("opd_1")
    JsonlFile(path).append([*lines, {"kind": "guidance", "cost_pico": 10**10}])
    with path.open("a") as file:
        file.write('{"torn')
    guidance, reference = spend_by_kind(path)
    assert (guidance.kind, guidance.cost_usd) == ("guidance", 0.01)
    assert (reference.texts, reference.cache_hits, reference.cost_usd) == (2, 1, 0.002)
    assert spend_by_kind(path.with_name("none")) == []
    html, _, _ = written(seen(), home)
    assert "costs nothing" in html
    row = seen(config={"teacher_kind": "claude"}, **paid(spent=0.5)).row
    html, _, _ = written(RunEvidence(row, [], [], spend=[reference]), home)
    assert "$0.5000" in html and "$0.0020" in html


def test_a_home_that_cannot_be_written_is_told(home: HomePaths) -> None:
    home.home.mkdir()
    (home.home / "reports").write_text("in the way")
    with pytest.raises(HomeError, match="reports"):
        write_report(seen(), home)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0.0, 1.0], 0, 1), ([0.013, 0.87], 0, 1), ([5.0], 4.5, 5.5), ([0.0], 0, 1), ([], 0, 1)],
)
def test_a_scale_has_round_ticks_that_hold_every_value(values: list[float], low: float, high: float) -> None:
    scale = Scale.over(values)
    assert scale.low <= low + 1e-9 and scale.high >= high - 1e-9
    assert 3 <= len(scale.ticks) <= 8 and (scale.place(scale.low), scale.place(scale.high)) == (0.0, 1.0)


def test_ticks_are_written_shortly() -> None:
    assert [tick_label(value) for value in (0.0, 0.25, -0.5, 1200.0, 1e-7, 2e9)] == [
        "0",
        "0.25",
        "-0.5",
        "1,200",
        "1e-07",
        "2e+09",
    ]


def test_a_sparkline_tells_first_lowest_highest_and_last() -> None:
    assert sparkline([0.0, 1.0, 0.5]) == "▁█▅ first 0, min 0, max 1, last 0.5"
    assert sparkline([]) == "no values"
    assert sparkline([0.70001, 0.70002]) == "▅▅ first 0.7, min 0.7, max 0.7, last 0.7"
    assert sparkline([2.0]) == "▅ first 2, min 2, max 2, last 2"
    assert len(sparkline([float(value) for value in range(1000)]).split()[0]) == 40
