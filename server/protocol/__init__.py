"""What MCP asks of a server beside tools, resources and prompts themselves."""
