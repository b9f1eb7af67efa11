"""What is recorded about a run, as diagnosis and report get it."""

from __future__ import annotations

import pytest

from opd_core.control import investigate
from opd_core.control.investigate import gather, spend_by_kind
from opd_core.control.runs import Runs
from opd_core.paths import HomePaths
from opd_core.state.jsonl import JsonlFile
from opd_core.state.store import RunStore
from tests.opd_core.control.runs_kit import config


@pytest.mark.usefixtures("busy")
def test_of_many_events_the_newest_are_looked_at_oldest_first(
    runs: Runs, home: HomePaths, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(investigate, "MAX_EVENTS", 3)
    runs.start(config(run_id="mine"))
    runs.start(config(run_id="other"))
    for number in range(9):
        store.add_event("mine", "warning", f"warning {number}")
    assert [event.message for event in gather(runs, home, "mine").events] == ["warning 6", "warning 7", "warning 8"]


def test_spending_is_of_the_beginning_of_the_file_and_passes_over_what_is_no_record(
    home: HomePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = JsonlFile(home.completions("mine"))
    assert spend_by_kind(file.path) == []
    file.append([{"kind": "critique", "input_tokens": 10, "output_tokens": 5, "cost_pico": 2 * 10**12}])
    with file.path.open("ab") as raw:
        raw.write(b'{"kind": "crit\n[]\n')
    monkeypatch.setattr(investigate, "MAX_COMPLETIONS_BYTES", file.path.stat().st_size + 10)
    file.append([{"kind": "critique", "input_tokens": 10, "output_tokens": 5, "cost_pico": 2 * 10**12}])
    [entry] = spend_by_kind(file.path)
    assert (entry.kind, entry.texts, entry.cost_usd) == ("critique", 1, 2.0)
