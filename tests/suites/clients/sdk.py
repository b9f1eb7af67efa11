"""The MCP SDK's own client, in the era it picks."""

from __future__ import annotations

import asyncio
from typing import Any

from mcp import StdioServerParameters
from mcp.client import Client
from mcp_types import TextContent

from tests.suites.clients.story import given, show, tell


async def main() -> None:
    """Tell the story."""
    told = given()
    server = StdioServerParameters(command=told["command"], args=told["args"], env=told["env"])
    async with Client(server) as client:

        async def call(name: str, arguments: dict[str, Any]) -> str:
            result = await client.call_tool(name, arguments)
            return "\n".join(block.text for block in result.content if isinstance(block, TextContent))

        tools = [tool.name for tool in (await client.list_tools()).tools]
        show(await tell(call, told["configuration"]), tools)


if __name__ == "__main__":
    asyncio.run(main())
