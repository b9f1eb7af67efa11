"""Tools, resources and prompts that the conformance suite calls by name: answers of every kind of content."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Annotated, Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.mcpserver.tools import Tool
from mcp_types import (
    AudioContent,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    TextContent,
    TextResourceContents,
)
from pydantic import Field

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC")
SILENCE = b"RIFF\x26\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\2\0\0\0\0\0"
PAUSE_SECONDS = 0.05
"""What the suite asks for between two notifications, so that a client can tell them apart."""
RICH_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"$anchor": "addressDef", "type": "object", "properties": {"city": {"type": "string"}}}},
    "properties": {
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def _answer(*content: ContentBlock) -> CallToolResult:
    return CallToolResult(content=list(content))


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text)


def _image() -> ImageContent:
    return ImageContent(type="image", data=base64.b64encode(PIXEL).decode(), mime_type="image/png")


def _embedded(uri: str, text: str, mime_type: str = "text/plain") -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, text=text, mime_type=mime_type))


async def simple_text() -> str:
    """Answers with a text."""
    return "This is a simple text response for testing."


async def image_content() -> CallToolResult:
    """Answers with a picture."""
    return _answer(_image())


async def audio_content() -> CallToolResult:
    """Answers with a sound."""
    return _answer(AudioContent(type="audio", data=base64.b64encode(SILENCE).decode(), mime_type="audio/wav"))


async def embedded_resource() -> CallToolResult:
    """Answers with a resource."""
    return _answer(_embedded("test://embedded-resource", "This is an embedded resource content."))


async def multiple_content_types() -> CallToolResult:
    """Answers with a text, a picture and a resource."""
    mixed = _embedded("test://mixed-content-resource", '{"test": "data", "value": 123}', "application/json")
    return _answer(_text("Multiple content types test:"), _image(), mixed)


async def error_handling() -> str:
    """Fails."""
    raise ToolError("This tool intentionally returns an error for testing")


async def tool_with_logging(ctx: Context) -> str:
    """Sends three lines of a log."""
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(line)
        await anyio.sleep(PAUSE_SECONDS)
    return "Tool with logging executed successfully"


async def tool_with_progress(ctx: Context) -> str:
    """Reports progress three times."""
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100)
        await anyio.sleep(PAUSE_SECONDS)
    return "Tool with progress executed successfully"


async def reconnection(ctx: Context) -> str:
    """Closes the stream of its own answer, which a client gets when it comes back."""
    await ctx.close_sse_stream()
    await anyio.sleep(PAUSE_SECONDS)
    return "Reconnection test completed successfully"


async def trigger_tool_change(ctx: Context) -> str:
    """Says that the list of tools has changed."""
    await ctx.notify_tools_changed()
    return "told"


async def trigger_prompt_change(ctx: Context) -> str:
    """Says that the list of prompts has changed."""
    await ctx.notify_prompts_changed()
    return "told"


async def header_param(label: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Label"})]) -> str:
    """Has a parameter that also stands in a header."""
    return f"The label is {label}."


async def rich_schema(contactMethod: str = "", phone: str = "", email: str = "") -> str:
    """Tool with JSON Schema 2020-12 features."""
    return phone or email or contactMethod


TOOLS: dict[str, Callable[..., Any]] = {
    "test_simple_text": simple_text,
    "test_image_content": image_content,
    "test_audio_content": audio_content,
    "test_embedded_resource": embedded_resource,
    "test_multiple_content_types": multiple_content_types,
    "test_error_handling": error_handling,
    "test_tool_with_logging": tool_with_logging,
    "test_logging_tool": tool_with_logging,
    "test_tool_with_progress": tool_with_progress,
    "test_reconnection": reconnection,
    "test_trigger_tool_change": trigger_tool_change,
    "test_trigger_prompt_change": trigger_prompt_change,
    "test_header_param": header_param,
}


def content_tools() -> list[Tool]:
    """All of them, under the suite's names."""
    rich = Tool.from_function(rich_schema, name="json_schema_2020_12_tool")
    rich.parameters = RICH_SCHEMA
    return [*(Tool.from_function(function, name=name) for name, function in TOOLS.items()), rich]


def add_content(server: MCPServer) -> None:
    """The suite's resources and prompts."""
    _add_resources(server)
    _add_prompts(server)


def _add_resources(server: MCPServer) -> None:
    @server.resource("test://static-text", mime_type="text/plain")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    def static_binary() -> bytes:
        return PIXEL

    @server.resource("test://watched-resource", mime_type="text/plain")
    def watched() -> str:
        return "Watched resource content."

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def template(id: str) -> str:
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def _add_prompts(server: MCPServer) -> None:
    @server.prompt("test_simple_prompt", description="A text.")
    def simple() -> str:
        return "This is a simple prompt for testing."

    @server.prompt("test_prompt_with_arguments", description="A text with two arguments in it.")
    def with_arguments(arg1: str, arg2: str) -> str:
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt("test_prompt_with_embedded_resource", description="A resource and a text.")
    def with_resource(resourceUri: str) -> list[UserMessage]:
        embedded = _embedded(resourceUri, "Embedded resource content for testing.")
        return [UserMessage(embedded), UserMessage("Please process the embedded resource above.")]

    @server.prompt("test_prompt_with_image", description="A picture and a text.")
    def with_image() -> list[UserMessage]:
        return [UserMessage(_image()), UserMessage("Please analyze the image above.")]
