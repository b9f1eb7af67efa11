"""`GET /metrics` as Prometheus' own parser reads it."""

from __future__ import annotations

import json

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from opd_core.money.amounts import PICO_PER_USD
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.types import END_STATES, LIVE_STATES
from server.live.prometheus import family
from server.live.streams import live_routes
from tests.server.fakes import FakeUseCases
from tests.server.live.feed_kit import Writer


def scrape(home: HomePaths) -> dict[str, Metric]:
    app = Starlette(routes=live_routes(FakeUseCases(home=home)))
    with TestClient(app) as client:
        response = client.get("/metrics")
    assert (
        response.status_code == 200 and response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    )
    families = list(text_string_to_metric_families(response.text))
    assert len({metric.name for metric in families}) == len(families)
    assert all(metric.documentation and metric.type in ("gauge", "counter") for metric in families)
    assert all(sample.name.startswith(metric.name) for metric in families for sample in metric.samples)
    return {metric.name: metric for metric in families}


def value(metric: Metric, **labels: str) -> float:
    (sample,) = [sample for sample in metric.samples if labels.items() <= sample.labels.items()]
    return float(sample.value)


def test_a_home_that_is_not_there_has_no_runs_and_stays_away(home: HomePaths) -> None:
    found = scrape(home)
    assert {sample.labels["state"]: sample.value for sample in found["opd_runs"].samples} == dict.fromkeys(
        ("queued", *LIVE_STATES, *END_STATES), 0
    )
    assert "opd_run_step" not in found and not home.home.exists()


def test_the_run_under_way_its_figures_and_its_money(home: HomePaths) -> None:
    writer = Writer.of(home)
    writer.begin("done")
    writer.end("done")
    writer.begin("run", total_steps=30)
    writer.step(7, "run", kl_loss=0.25, tokens_per_second=55.5)
    line = {"step": 7, "kl_loss": 0.25, "tokens_per_second": 55.5}
    writer.store.heartbeat("run", writer.epoch, latest_metrics=json.dumps(line))
    ledger = Ledger(home.database, month_limit_pico=100 * PICO_PER_USD)
    ledger.open_budget("run", 10 * PICO_PER_USD)
    found = scrape(home)
    assert value(found["opd_runs"], state="completed") == 1 and value(found["opd_runs"], state="running") == 1
    assert value(found["opd_run_step"], run_id="run") == 7 and value(found["opd_run_steps"]) == 30
    assert value(found["opd_run_kl_loss_nats"], run_id="run") == 0.25
    assert value(found["opd_run_tokens_per_second"]) == 55.5
    assert 0 <= value(found["opd_worker_heartbeat_age_seconds"]) < 60
    assert value(found["opd_run_budget_limit_usd"]) == 10 and value(found["opd_run_spent_usd"]) == 0


def test_the_number_of_series_does_not_grow_with_the_number_of_runs(home: HomePaths) -> None:
    writer = Writer.of(home)
    writer.begin("run0")
    one = sum(len(metric.samples) for metric in scrape(home).values())
    writer.end("run0")
    for number in range(1, 20):
        writer.begin(f"run{number}")
        writer.end(f"run{number}")
    writer.begin("last")
    assert sum(len(metric.samples) for metric in scrape(home).values()) == one


@pytest.mark.parametrize("label", ['a"b', "back\\slash", "new\nline", "ünï", "\\n", '"}\nopd_x 1'])
def test_labels_and_numbers_come_back_as_they_were(label: str) -> None:
    numbers = (0.1, 1e-300, float("inf"), float("-inf"), 3)
    for number in numbers:
        text = family("opd_x", "gauge", 'A "help" of\ntwo lines \\ slash.', [({"name": label}, number)])
        (metric,) = text_string_to_metric_families(text)
        assert metric.documentation == 'A "help" of\ntwo lines \\ slash.'
        assert [(sample.labels, sample.value) for sample in metric.samples] == [({"name": label}, number)]


def test_a_value_that_is_not_known_is_left_out_with_its_metric() -> None:
    assert family("opd_x", "gauge", "X.", [({}, None)]) == ""
