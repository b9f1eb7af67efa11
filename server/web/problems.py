"""Errors over HTTP: `application/problem+json` (RFC 9457) with the text a tool would have given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from opd_core import errors
from opd_core.errors import OPDError

STATUSES: tuple[tuple[type[OPDError], int], ...] = (
    (errors.RunNotFoundError, 404),
    (errors.ConfigError, 422),
    (errors.PathError, 422),
    (errors.PromptFileError, 422),
    (errors.ModelFileError, 422),
    (errors.CompatibilityError, 422),
    (errors.UnknownPriceError, 422),
    (errors.BudgetExceededError, 402),
    (errors.BudgetFrozenError, 402),
    (errors.StalePricesError, 409),
    (errors.DuplicateCallError, 409),
    (errors.CheckpointError, 409),
    (errors.StateError, 409),
    (errors.TeacherRefusedError, 409),
    (errors.StoreError, 503),
    (errors.HomeError, 503),
    (errors.TeacherUnavailableError, 503),
)
"""The status of each kind of error; what is not here is a fault of the server: 500."""

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1
NO_STORE = {"Cache-Control": "no-store"}
"""Answers tell the present and may hold prompts: nobody on the way keeps them."""


class Problem(BaseModel):
    """What went wrong and what to do next."""

    type: Annotated[str, Field(description="urn:opd:problem:… names the kind of error; about:blank: the status does.")]
    title: Annotated[str, Field(description="The status in words.")]
    status: Annotated[int, Field(ge=400, le=599)]
    detail: Annotated[str, Field(description="What is wrong, what is allowed and what to do next, in plain sentences.")]
    field: Annotated[str | None, Field(description="The argument at fault, where it is one.")] = None


def problem_json(status: int, detail: str, *, kind: str | None = None, field: str | None = None) -> bytes:
    """The body of a refusal.

    Args:
        kind: the kind of error in kebab case; None where the status says it all.
    """
    told = Problem(
        type=f"urn:opd:problem:{kind}" if kind else "about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        field=field,
    )
    return told.model_dump_json(exclude_none=True).encode()


def problem(
    status: int,
    detail: str,
    *,
    kind: str | None = None,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The response to a request that was refused; see `problem_json`."""
    body = problem_json(status, detail, kind=kind, field=field)
    return Response(body, status, {**NO_STORE, **(headers or {})}, PROBLEM_TYPE)


def status_of(error: OPDError) -> int:
    """The HTTP status of an error of the house."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def problem_of(error: OPDError) -> Response:
    """The response to an error that a verb raised."""
    status = status_of(error)
    kind = re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__).lower()
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    return problem(status, str(error), kind=kind, field=error.field, headers=headers)


async def on_http_error(request: Request, error: Exception) -> Response:
    """The framework's own refusals (no such path, wrong method) in the same form."""
    assert isinstance(error, HTTPException)
    told = {
        404: "There is nothing at this path. GET /openapi.json lists every route; MCP is at /mcp.",
        405: f"This path does not take {request.method}. Its methods are in the Allow header.",
    }
    detail = told.get(error.status_code, error.detail) if _unworded(error) else error.detail
    return problem(error.status_code, detail, headers=error.headers)


def _unworded(error: HTTPException) -> bool:
    return error.detail == HTTPStatus(error.status_code).phrase


async def on_fault(request: Request, error: Exception) -> Response:
    """A fault outside any verb; its traceback goes to the server's error output, not to the caller."""
    return problem(500, "The server met an unexpected error; its error output has the details. Try again once.")
