"""langchain-mcp-adapters, which speaks the protocol of 2025 with version 1 of the SDK."""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools

from tests.suites.clients.story import given, show, tell


async def main() -> None:
    """Tell the story through tools as an agent of LangChain has them."""
    told = given()
    connection = {"transport": "stdio", **{key: told[key] for key in ("command", "args", "env")}}
    async with MultiServerMCPClient({"opd": connection}).session("opd") as session:
        tools = {tool.name: tool for tool in await load_mcp_tools(session)}

        async def call(name: str, arguments: dict[str, Any]) -> str:
            content = await tools[name].ainvoke(arguments)
            return content if isinstance(content, str) else "\n".join(block.get("text", "") for block in content)

        show(await tell(call, told["configuration"]), list(tools))


if __name__ == "__main__":
    asyncio.run(main())
