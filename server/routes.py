"""The verbs as JSON over HTTP: a GET takes its arguments from the query, a POST from its body; every answer is a 200.

A route and the tool of the same verb take the same model and give the same structured answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opd_core.errors import OPDError
from server.verbs import VERBS, Verbs
from server.web.arguments import body_arguments, query_arguments
from server.web.problems import NO_STORE, problem_of


@dataclass(frozen=True)
class VerbRoute:
    """Where a verb is over HTTP."""

    method: Literal["GET", "POST"]
    path: str
    verb: str


ROUTES = (
    VerbRoute("GET", "/opd/check", "check_setup"),
    VerbRoute("GET", "/opd/models", "list_models"),
    VerbRoute("POST", "/opd/prompts", "inspect_prompts"),
    VerbRoute("POST", "/opd/estimate", "estimate_cost"),
    VerbRoute("POST", "/opd/probe", "probe_teacher"),
    VerbRoute("POST", "/opd/start", "start_distillation"),
    VerbRoute("GET", "/opd/status", "get_status"),
    VerbRoute("GET", "/opd/wait", "wait_for_run"),
    VerbRoute("GET", "/opd/metrics", "get_metrics"),
    VerbRoute("GET", "/opd/plot", "plot_metrics"),
    VerbRoute("GET", "/opd/log", "read_log"),
    VerbRoute("GET", "/opd/diagnose", "diagnose_run"),
    VerbRoute("GET", "/opd/runs", "list_runs"),
    VerbRoute("POST", "/opd/stop", "stop_distillation"),
    VerbRoute("POST", "/opd/resume", "resume_distillation"),
    VerbRoute("POST", "/opd/compare", "compare_adapters"),
    VerbRoute("GET", "/opd/report", "export_report"),
)
"""Every verb has one route."""

Endpoint = Callable[[Request], Awaitable[Response]]


def verb_routes(verbs: Verbs) -> list[Route]:
    """The routes of all verbs."""
    return [Route(route.path, _endpoint(verbs, route), methods=[route.method], name=route.verb) for route in ROUTES]


def _endpoint(verbs: Verbs, route: VerbRoute) -> Endpoint:
    model = VERBS[route.verb].arguments
    read = query_arguments if route.method == "GET" else body_arguments

    async def endpoint(request: Request) -> Response:
        try:
            answer = await verbs.call(route.verb, await read(request, model))
        except OPDError as error:
            return problem_of(error)
        return JSONResponse(answer.model_dump(mode="json"), headers=NO_STORE)

    return endpoint
