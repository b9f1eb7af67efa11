"""The middleware that checks the name and the arguments of every tool call before the SDK sees them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mcp.server.context import HandlerResult, ServerRequestContext
from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel

from opd_core.errors import ConfigError
from opd_core.types import clean_text
from server.arguments.parsing import parse_arguments

CallNext = Callable[[ServerRequestContext[Any, Any]], Awaitable[HandlerResult]]


class ArgumentGate:
    """Refuses unknown tools and wrong arguments in our words; hands on the checked model as the one argument."""

    def __init__(self, models: Mapping[str, type[BaseModel]], others: frozenset[str] = frozenset()) -> None:
        """`others` are tools that are not verbs; the SDK checks what they are given."""
        self._models, self._others = models, others

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Let everything but a tool call pass untouched."""
        if ctx.method != "tools/call":
            return await call_next(ctx)
        params = dict(ctx.params or {})
        name, given = params.get("name"), params.get("arguments")
        model = self._models.get(name) if isinstance(name, str) else None
        if name in self._others:
            return await call_next(ctx)
        if model is None:
            return _refusal(self._unknown_tool(name))
        if given is not None and not isinstance(given, Mapping):
            return _refusal(f"The arguments of {name} must be an object of names and values. Call it again with one.")
        try:
            checked = parse_arguments(model, given or {})
        except ConfigError as error:
            return _refusal(f"{name} was not called. {error}")
        return await call_next(dataclasses.replace(ctx, params={**params, "arguments": {"arguments": checked}}))

    def _unknown_tool(self, name: object) -> str:
        shown = clean_text(str(name), 80)
        near = difflib.get_close_matches(shown, list(self._models), n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        return f"There is no tool {shown!r}. {hint}The tools are {', '.join(self._models)}."


def _refusal(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)
