"""A client that knows the Tasks extension: calls that may answer with a task, and the requests about one."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from mcp.client import ClaimContext, Client, ClientExtension, ResultClaim
from mcp_types import CallToolResult, Request, RequestParams, Result
from pydantic import ConfigDict

from server.protocol.tasks import EXTENSION_ID


class Handle(Result):
    """The answer of a call that became a task; every field as it came."""

    model_config = ConfigDict(extra="allow")
    result_type: Literal["task"] = "task"


class Anything(Result):
    model_config = ConfigDict(extra="allow")


class AnyParams(RequestParams):
    model_config = ConfigDict(extra="allow")


class TaskRequest(Request[AnyParams, str]):
    name_param: ClassVar[str | None] = "taskId"


async def _never(result: Handle, context: ClaimContext) -> CallToolResult:
    raise AssertionError("the tests resolve tasks themselves")


class TaskClient(ClientExtension):
    """Declares the extension."""

    identifier = EXTENSION_ID

    def claims(self) -> tuple[ResultClaim[Any], ...]:
        return (ResultClaim(result_type="task", model=Handle, resolve=_never),)


async def call(client: Client, tool: str, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One `tools/call` as it came over the wire: a task, a result or a question."""
    result = await client.session.call_tool(tool, arguments, allow_claimed=True, allow_input_required=True, **more)
    return result.model_dump(by_alias=True, mode="json", exclude_none=True)


async def ask(client: Client, method: str, task_id: str, **params: Any) -> dict[str, Any]:
    """`tasks/get`, `tasks/update` or `tasks/cancel`.

    Raises:
        MCPError: refused.
    """
    request = TaskRequest(method=f"tasks/{method}", params=AnyParams.model_validate({"taskId": task_id, **params}))
    result = await client.session.send_request(request, Anything)
    return result.model_dump(by_alias=True, mode="json", exclude={"meta"})
