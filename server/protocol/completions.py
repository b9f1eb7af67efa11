"""Completion of arguments while a user types them: run ids and adapter folders."""

from __future__ import annotations

from collections.abc import Callable

import anyio.to_thread
from mcp.server import MCPServer
from mcp_types import Completion, CompletionArgument, CompletionContext, PromptReference, ResourceTemplateReference

from opd_core.errors import OPDError
from server.use_cases import UseCases

MAX_VALUES = 100
"""What the protocol allows."""
RUN_IDS = frozenset({"run_id", "run_a", "run_b"})
ADAPTERS = frozenset({"adapter_path"})


def add_completions(server: MCPServer, cases: UseCases) -> None:
    """Let a server complete the arguments of its prompts and resource templates."""

    async def complete(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion | None:
        find = _finder(argument.name)
        if find is None:
            return None
        try:
            known = await anyio.to_thread.run_sync(find, cases)
        except OPDError:  # an unusable home has nothing to offer; the call itself will say so
            return None
        values = [value for value in known if value.startswith(argument.value)]
        return Completion(values=values[:MAX_VALUES], total=len(values), has_more=len(values) > MAX_VALUES)

    server.completion()(complete)  # type: ignore[no-untyped-call]  # the SDK does not annotate it


def _finder(name: str) -> Callable[[UseCases], list[str]] | None:
    if name in RUN_IDS:
        return _run_ids
    return _adapters if name in ADAPTERS else None


def _run_ids(cases: UseCases) -> list[str]:
    """The newest runs first."""
    rows, _ = cases.list(None, None, MAX_VALUES, None)
    return [row.run_id for row in rows]


def _adapters(cases: UseCases) -> list[str]:
    return [str(adapter.path) for adapter in cases.list_models().adapters if adapter.problem is None]
