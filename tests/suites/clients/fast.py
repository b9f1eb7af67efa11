"""fastmcp's client."""

from __future__ import annotations

import asyncio
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from tests.suites.clients.story import given, show, tell


async def main() -> None:
    """Tell the story."""
    told = given()
    async with Client(StdioTransport(told["command"], told["args"], env=told["env"])) as client:

        async def call(name: str, arguments: dict[str, Any]) -> str:
            result = await client.call_tool(name, arguments)
            return "\n".join(block.text for block in result.content if block.type == "text")

        tools = [tool.name for tool in await client.list_tools()]
        show(await tell(call, told["configuration"]), tools)


if __name__ == "__main__":
    asyncio.run(main())
