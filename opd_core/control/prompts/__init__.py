"""What a prompt file holds, before a run is started on it: `inspection.inspect_prompts`."""
