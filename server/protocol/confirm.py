"""The user's yes to a costly start, asked through the client where it can ask (elicitation).

The rule itself is a use case's (`opd_core/control/confirming.py`): a verb that needs a yes is refused with a question.
Here the question goes to the user and the verb is called again with `confirmed`. A client that cannot ask gets the
refusal, which tells its assistant to ask. Both eras: before 2026-07-28 the question is a request to the client in the
middle of the call, since then a result that the client answers by calling again with the same arguments.
"""

from __future__ import annotations

import hashlib
from typing import Any

from mcp.server.elicitation import render_elicitation_schema
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import (
    ClientCapabilities,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
)
from mcp_types.version import is_version_at_least
from pydantic import BaseModel, Field, ValidationError

from opd_core.errors import ConfirmationNeededError, OPDError
from server.arguments.jobs import ProbeArguments
from server.schemas.base import Answer
from server.verbs import Verbs

INPUT_REQUIRED_SINCE = "2026-07-28"
QUESTION_KEY = "confirmation"


class DeclinedError(OPDError):
    """The user was asked and did not agree."""


class Agreement(BaseModel):
    """What the user fills in."""

    agreed: bool = Field(title="I agree to this cost", description="Yes: start it; it may spend up to this budget.")


async def confirmed_call(
    verbs: Verbs, name: str, arguments: BaseModel, context: Context
) -> Answer | InputRequiredResult:
    """Call a verb; when it needs the user's yes and the client can ask for it, ask and call again.

    Raises:
        OPDError: as the verb; ConfirmationNeededError when the client cannot ask; DeclinedError when the user said no.
    """
    try:
        return await verbs.call(name, arguments, context.report_progress)
    except ConfirmationNeededError as needed:
        if not _can_ask(context):
            raise
        try:
            verdict = await _ask(context, needed.question)
        except MCPError:  # it cannot after all, or not in the middle of a call
            raise needed from None
    if isinstance(verdict, InputRequiredResult):
        return verdict
    if not verdict:
        raise DeclinedError("The user did not agree to this cost, so nothing was started. Ask what they want instead.")
    return await verbs.call(name, _with_agreement(arguments), context.report_progress)


def _can_ask(context: Context) -> bool:
    """Whether the client says that it shows forms."""
    capabilities: ClientCapabilities | None = context.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def _answers_by_calling_again(context: Context) -> bool:
    return is_version_at_least(context.protocol_version or "", INPUT_REQUIRED_SINCE)


async def _ask(context: Context, question: str) -> bool | InputRequiredResult:
    """True: agreed; False: declined, cancelled or not ticked; else the question, to be sent as the call's result."""
    if not _answers_by_calling_again(context):
        try:
            outcome = await context.elicit(question, Agreement)
        except ValueError:  # accepted without the tick
            return False
        return outcome.action == "accept" and outcome.data.agreed
    asked = hashlib.sha256(question.encode()).hexdigest()
    answer = (context.input_responses or {}).get(QUESTION_KEY)
    # the SDK seals the state and binds it to tool and arguments; an answer to another question is none to this one
    if answer is None or context.request_state != asked:
        return InputRequiredResult(input_requests={QUESTION_KEY: _form(question)}, request_state=asked)
    return isinstance(answer, ElicitResult) and answer.action == "accept" and _agrees(answer.content)


def _form(question: str) -> ElicitRequest:
    schema = render_elicitation_schema(Agreement)
    return ElicitRequest(params=ElicitRequestFormParams(message=question, requested_schema=schema))


def _agrees(content: Any) -> bool:
    try:
        return Agreement.model_validate(content).agreed
    except ValidationError:
        return False


def _with_agreement(arguments: BaseModel) -> BaseModel:
    if isinstance(arguments, ProbeArguments) and arguments.config is not None:
        config = arguments.config.model_copy(update={"confirmed": True})
        return arguments.model_copy(update={"config": config})
    return arguments.model_copy(update={"confirmed": True})
