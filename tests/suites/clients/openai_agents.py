"""The OpenAI Agents SDK: a server over stdio with every default, the five seconds a call may take among them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from agents import RunContextWrapper
from agents.mcp import MCPServerStdio, MCPUtil

from tests.suites.clients.story import given, show, tell


async def main() -> None:
    """Tell the story through what an agent's tool call goes through, and read what its model would."""
    told = given()
    params = {"command": told["command"], "args": told["args"], "env": told["env"]}
    async with MCPServerStdio(params=params) as server:
        assert server.client_session_timeout_seconds == 5, "the default this test is about has changed"
        tools = {tool.name: tool for tool in await server.list_tools()}

        async def call(name: str, arguments: dict[str, Any]) -> str:
            output = await MCPUtil.invoke_mcp_tool(server, tools[name], RunContextWrapper(None), json.dumps(arguments))
            return str(output["text"]) if isinstance(output, dict) else str(output)

        show(await tell(call, told["configuration"]), list(tools))


if __name__ == "__main__":
    asyncio.run(main())
