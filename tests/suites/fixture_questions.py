"""Tools and a prompt of the conformance suite that ask the client something: in mid-call (2025) or in rounds (2026)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequests,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
)

Reply = str | InputRequiredResult
STATES = ["active", "inactive", "pending"]
DEFAULTS = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": STATES, "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
TITLED = [{"const": "value1", "title": "First Option"}, {"const": "value2", "title": "Second Option"}]
ENUMS = {
    "untitledSingle": {"type": "string", "enum": STATES},
    "titledSingle": {"type": "string", "oneOf": TITLED},
    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": STATES}},
    "titledMulti": {"type": "array", "items": {"anyOf": TITLED}},
}


def _schema(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required}


def _form(message: str, name: str, kind: str = "string") -> ElicitRequest:
    return ElicitRequest(
        params=ElicitRequestFormParams(message=message, requested_schema=_schema({name: {"type": kind}}))
    )


def _sample(question: str, max_tokens: int = 100) -> CreateMessageRequest:
    said = SamplingMessage(role="user", content=TextContent(type="text", text=question))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[said], max_tokens=max_tokens))


def _filled(ctx: Context, key: str, name: str) -> Any:
    """What a client wrote into a field of the form `key`; None: nothing usable yet."""
    response = (ctx.input_responses or {}).get(key)
    content = response.content if isinstance(response, ElicitResult) and response.action == "accept" else None
    return (content or {}).get(name)


def _ask(requests: InputRequests, state: str | None = None) -> InputRequiredResult:
    return InputRequiredResult(input_requests=requests, request_state=state)


async def ask_name(ctx: Context) -> Reply:
    """Asks for a name."""
    name = _filled(ctx, "user_name", "name")
    return f"Hello, {name}!" if name else _ask({"user_name": _form("What is your name?", "name")})


async def ask_model(ctx: Context) -> Reply:
    """Asks the client's model."""
    answered = (ctx.input_responses or {}).get("capital_question")
    content = getattr(answered, "content", None)
    if content is None:
        return _ask({"capital_question": _sample("What is the capital of France?")})
    return f"LLM response: {getattr(content, 'text', content)}"


async def ask_roots(ctx: Context) -> Reply:
    """Asks for the client's roots."""
    roots = getattr((ctx.input_responses or {}).get("client_roots"), "roots", None)
    if roots is None:
        return _ask({"client_roots": ListRootsRequest()})
    return f"Roots: {', '.join(str(root.uri) for root in roots)}"


async def ask_with_state(ctx: Context) -> Reply:
    """Asks for a confirmation and remembers that it did."""
    if ctx.request_state is None or _filled(ctx, "confirm", "ok") is None:
        return _ask({"confirm": _form("Please confirm", "ok", "boolean")}, "asked")
    return "state-ok" if ctx.request_state == "asked" else "another state"


async def ask_three_things(ctx: Context) -> Reply:
    """Asks the user, the model and the client at once."""
    requests: InputRequests = {
        "user_name": _form("What is your name?", "name"),
        "greeting": _sample("Generate a greeting", 50),
        "client_roots": ListRootsRequest(),
    }
    answered = ctx.input_responses or {}
    return "All three are answered." if requests.keys() <= answered.keys() else _ask(requests, "asked")


async def ask_twice(ctx: Context) -> Reply:
    """Asks one question after the other."""
    if ctx.request_state is None:
        return _ask({"step1": _form("Step 1: What is your name?", "name")}, "one")
    if ctx.request_state == "one":
        return _ask({"step2": _form("Step 2: What is your favorite color?", "color")}, "two")
    return f"Your favorite color is {_filled(ctx, 'step2', 'color')}."


async def ask_what_the_client_can(ctx: Context) -> Reply:
    """Asks only in the ways that the client declared."""
    can = ctx.client_capabilities
    requests: InputRequests = {}
    if can is not None and can.elicitation is not None:
        requests["user_name"] = _form("What is your name?", "name")
    if can is not None and can.sampling is not None:
        requests["greeting"] = _sample("Generate a greeting")
    if not requests or requests.keys() <= (ctx.input_responses or {}).keys():
        return "Nothing is left to ask."
    return _ask(requests)


async def missing_capability(ctx: Context) -> str:
    """Needs a client that samples."""
    if ctx.client_capabilities is None or ctx.client_capabilities.sampling is None:
        needed: dict[str, Any] = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "This tool needs a client that samples.", needed)
    return "The client samples."


async def sampling(prompt: str, ctx: Context) -> str:
    """Asks the client's model in mid-call."""
    said = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
    result = await ctx.session.create_message([said], max_tokens=100, related_request_id=ctx.request_id)
    return f"LLM response: {getattr(result.content, 'text', '')}"


async def elicitation(message: str, ctx: Context) -> str:
    """Asks the user in mid-call."""
    return await _elicit(ctx, message, _schema({"username": {"type": "string"}, "email": {"type": "string"}}))


async def elicitation_defaults(ctx: Context) -> str:
    """Asks with a default for every kind of field."""
    return await _elicit(ctx, "Please give your details.", _schema(DEFAULTS, []))


async def elicitation_enums(ctx: Context) -> str:
    """Asks with every kind of choice."""
    return await _elicit(ctx, "Please choose.", _schema(ENUMS, []))


async def _elicit(ctx: Context, message: str, schema: dict[str, Any]) -> str:
    result = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
    return f"Elicitation completed: action={result.action}, content={result.content}"


IN_ROUNDS = "test_input_required_result_"
TOOLS: dict[str, Callable[..., Any]] = {
    f"{IN_ROUNDS}elicitation": ask_name,
    f"{IN_ROUNDS}sampling": ask_model,
    f"{IN_ROUNDS}list_roots": ask_roots,
    f"{IN_ROUNDS}request_state": ask_with_state,
    f"{IN_ROUNDS}tampered_state": ask_with_state,
    f"{IN_ROUNDS}multiple_inputs": ask_three_things,
    f"{IN_ROUNDS}multi_round": ask_twice,
    f"{IN_ROUNDS}capabilities": ask_what_the_client_can,
    "test_streaming_elicitation": ask_name,
    "test_missing_capability": missing_capability,
    "test_sampling": sampling,
    "test_elicitation": elicitation,
    "test_elicitation_sep1034_defaults": elicitation_defaults,
    "test_elicitation_sep1330_enums": elicitation_enums,
}


def question_tools() -> list[Tool]:
    """All of them, under the suite's names."""
    return [Tool.from_function(function, name=name) for name, function in TOOLS.items()]


def add_question(server: MCPServer) -> None:
    """The suite's prompt that asks before it answers."""

    @server.prompt(f"{IN_ROUNDS}prompt", description="Asks for a context before it answers.")
    async def ask_context(ctx: Context) -> Reply:
        context = _filled(ctx, "user_context", "context")
        if context is None:
            return _ask({"user_context": _form("What context should the prompt use?", "context")})
        return f"Use this context: {context}"
