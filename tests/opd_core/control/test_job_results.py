"""What a finished comparison or probe leaves to be read, and what is said when it cannot be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from opd_core.comparison import ComparisonSpec
from opd_core.control.runs import Runs
from opd_core.errors import ConfigError, StateError
from opd_core.paths import HomePaths, write_json
from opd_core.state.store import RunStore
from tests.opd_core.control.runs_kit import config, end


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
