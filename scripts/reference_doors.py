"""The reference's sections on HTTP, live messages, figures, errors and commands."""

from __future__ import annotations

import argparse
import inspect
import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from starlette.routing import Route, WebSocketRoute

from opd_core import errors
from opd_core.errors import OPDError
from opd_core.money.amounts import PICO_PER_USD
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.settings import Settings
from opd_core.state.database import Database
from opd_core.state.store import RunStore
from scripts.reference_forms import argument_rows, code, field_rows, table
from scripts.reference_meanings import OWN_ROUTES
from server.arguments.slim import input_schema
from server.cli import parser
from server.home_use_cases import HomeUseCases
from server.live.progress import Cost, FollowArguments, ProgressData
from server.live.prometheus import RUN_FIGURES, exposition
from server.protocol.confirm import DeclinedError
from server.protocol.texts import TOOLS
from server.routes import ROUTES
from server.verbs import UnexpectedError
from server.web.app import plain_routes
from server.web.openapi import REFUSALS
from server.web.problems import problem_of, status_of


def door_sections() -> Iterator[str]:
    """One text a section."""
    yield _http()
    yield _live()
    yield _prometheus()
    yield _errors()
    yield _commands()


def route_paths() -> list[tuple[str, str]]:
    """Method and path of every route that the HTTP server has."""
    with tempfile.TemporaryDirectory() as folder:
        routes = plain_routes(HomeUseCases(Settings(home=HomePaths(Path(folder) / "home")), is_local=False))
    found = [("GET, POST, DELETE", "/mcp")]
    for route in routes:
        if isinstance(route, WebSocketRoute):
            found.append(("WebSocket", route.path))
        elif isinstance(route, Route):
            found.append((", ".join(sorted((route.methods or set()) - {"HEAD"})), route.path))
    return found


def _http() -> str:
    verbs = {route.path: route.verb for route in ROUTES}
    rows = [
        [
            method,
            code(path),
            f"[{verbs[path]}](#{verbs[path]}): {TOOLS[verbs[path]].title}" if path in verbs else OWN_ROUTES[path],
        ]
        for method, path in route_paths()
    ]
    statuses = [[str(status), told] for status, told in sorted({200: "The answer.", **REFUSALS}.items())]
    intro = (
        "A GET takes its arguments from the query (a list as `a,b`), a POST from a JSON object. A route takes and "
        "answers what its tool does. Every request but `/health` carries `Authorization: Bearer` and the text of "
        "`OPD_HOME/token`. Errors are `application/problem+json`: `type`, `title`, `status`, `detail` (the tool's "
        "text), `field`.\n"
    )
    return "\n".join(
        [
            "## HTTP\n",
            intro,
            table(("method", "path", "what"), rows) + "\n",
            table(("status", "meaning"), statuses) + "\n",
        ]
    )


def _live() -> str:
    intro = (
        '`{"type": "opd_progress", "data": {…}}` from `/opd/events` and `/opd/ws`. Kinds `state`, `metrics`, `warning` '
        "and `checkpoint` are kept and have a sequence of their own; `phase`, `spend` and `log` are sent as they come. "
        "A reader that takes nothing for ten seconds is dropped (event `dropped`, close code 1013).\n"
    )
    asked = argument_rows(input_schema(FollowArguments))
    told = field_rows(ProgressData.model_json_schema(mode="serialization"))
    return "\n".join(
        [
            "## Live messages\n",
            intro,
            table(("argument", "value", "default", "meaning"), asked) + "\n",
            table(("field of data", "value", "meaning"), told) + "\n",
            f"`cost` has {', '.join(code(name) for name in Cost.model_fields)}.\n",
        ]
    )


def figures() -> list[tuple[str, str, str]]:
    """Name, kind and meaning of everything `/metrics` can show: those of a home with a paid run under way."""
    with tempfile.TemporaryDirectory() as folder:
        home = HomePaths(Path(folder) / "home")
        home.prepare()
        store = RunStore(home.database)
        store.create("run", "distillation", {"seed": 1}, total_steps=2)
        epoch = store.claim("run")
        store.transition("run", "running", epoch=epoch)
        line = {"step": 1, **{key: 1.0 for key, _, _ in RUN_FIGURES}}
        store.heartbeat("run", epoch, latest_metrics=json.dumps(line))
        ledger = Ledger(home.database, month_limit_pico=PICO_PER_USD)
        for scope in ("run", f"month:{datetime.now(UTC):%Y-%m}"):
            ledger.open_budget(scope, PICO_PER_USD)
        lines = exposition(home, Database(home.database), readers=0).splitlines()
    kinds = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE "))
    told = [line.split(" ", 3)[2:] for line in lines if line.startswith("# HELP ")]
    return [(name, kinds[name], meaning) for name, meaning in told]


def _prometheus() -> str:
    rows = [[code(name), kind, meaning] for name, kind, meaning in figures()]
    intro = (
        "Of `GET /metrics`. Those of a run are there while one is under way, those of money when a budget is open.\n"
    )
    return f"## Prometheus figures\n\n{intro}\n" + table(("figure", "kind", "meaning"), rows) + "\n"


def error_kinds() -> list[type[OPDError]]:
    """Every error that a tool or a route may tell of."""
    named = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, OPDError)]
    return [*(kind for kind in named if kind is not OPDError), DeclinedError, UnexpectedError]


def _errors() -> str:
    rows = []
    for kind in sorted(error_kinds(), key=lambda kind: kind.__name__):
        bare = kind.__new__(kind)
        OPDError.__init__(bare, "")
        problem = json.loads(bytes(problem_of(bare).body))
        rows.append([code(problem["type"]), str(status_of(bare)), (kind.__doc__ or "").partition("\n")[0]])
    intro = (
        "The `type` and status of a problem over HTTP. A tool's error has the same text. Some happen only in a worker, "
        "where they end its run, or in a chat.\n"
    )
    return f"## Errors\n\n{intro}\n" + table(("type", "status", "meaning"), rows) + "\n"


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command of `opd`."""
    (choices,) = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(choices.choices)


def _commands() -> str:
    parts = [
        "## Commands\n",
        "Exit codes: 0 done; 1 it ended otherwise than hoped; 2 wrong input or an error, told on standard error; 130 "
        "interrupted.\n",
    ]
    for name, command in commands().items():
        rows = [
            [code(", ".join(action.option_strings) or str(action.metavar or action.dest)), action.help or ""]
            for action in command._actions
            if not isinstance(action, argparse._HelpAction)
        ]
        parts.append(f"### opd {name}\n\n{command.description}\n")
        if rows:
            parts.append(table(("argument", "meaning"), rows) + "\n")
    return "\n".join(parts)
