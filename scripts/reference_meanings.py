"""What the reference says of names that have no words of their own in the code; a test holds the sets together."""

from __future__ import annotations

import ast
from pathlib import Path

import opd_core.control
from opd_core.types import EndReason, JobKind, RunState

STATES: dict[RunState, str] = {
    "queued": "Waits for the job before it; `queue_position` 1 is next.",
    "preparing": "Its worker loads models and data.",
    "running": "At work; `phase` says at what.",
    "waiting": "Waits for a rate limit, an overload, or a batch, and goes on by itself at `wake_at`.",
    "stopping": "Was asked to stop, and ends after the work in hand.",
    "completed": "Ended as planned; its result is there.",
    "stopped": "Ended before its last step; `end_reason` says why. It can be resumed.",
    "failed": "An error ended it; `error_message` names it. It can be resumed when that is mended.",
    "interrupted": "Its worker process died. It can be resumed.",
}
END_REASONS: dict[EndReason, str] = {
    "finished": "All steps were done.",
    "early_stop": "The held-out figures got no better, or worse; the best adapter is kept.",
    "budget": "The next paid call did not fit into a budget, or paid calls are frozen.",
    "by_user": "stop_distillation, or a signal.",
    "diverged": "The loss or the weights were no longer finite, or the student ran away.",
    "teacher_refused": "The teacher's provider refuses to help with this training.",
    "error": "Something else went wrong; `error_message` says what.",
    "worker_died": "The worker's process ended without a word: killed, out of memory, or the machine went down.",
}
KINDS: dict[JobKind, str] = {
    "distillation": "A run of start_distillation.",
    "comparison": "A job of compare_adapters.",
    "probe": "A job of probe_teacher.",
}
SETTINGS: dict[str, tuple[str, str]] = {
    "ANTHROPIC_API_KEY": ("The teacher's key; environment or `.env` only. Never shown or logged.", "none"),
    "OPD_HOME": ("Where everything lies; environment only.", "`~/OnPolicyDistill`"),
    "OPD_ROOTS": ("Further folders that models and files may come from, separated as in PATH.", "none"),
    "OPD_MAX_BUDGET_USD": ("Most dollars one run may name as its budget.", "100"),
    "OPD_MONTHLY_BUDGET_USD": (
        "Most dollars of everything in a calendar month (UTC); the lowest it has seen rules it.",
        "as OPD_MAX_BUDGET_USD",
    ),
    "OPD_DEFAULT_TEACHER": ("Claude model of runs that name none.", "`claude-sonnet-5-5`"),
    "OPD_RATE_LIMIT_TPM": ("Most teacher tokens a minute, for every run.", "the run's own"),
    "OPD_CHECKPOINT_DIR": ("A folder outside the home that runs may write checkpoints to.", "none"),
    "OPD_CACHE_DIR": ("A folder outside the home that runs may write rollouts to.", "none"),
    "teacher_base_url": ("Another address of the provider; https, no path. Only in `settings.toml`.", "the provider's"),
    "prices_confirmed_on": (
        "The day you compared the price table with the provider's page. Only in `settings.toml`.",
        "none",
    ),
}
OWN_ROUTES: dict[str, str] = {
    "/mcp": "MCP over streamable HTTP, both protocol eras.",
    "/opd/events": "Live messages as server-sent events; `run_id`, `after`.",
    "/opd/ws": "The same over a WebSocket; the token in the header or as a subprotocol (`opd`, `opd.token.TOKEN`).",
    "/metrics": "Figures in Prometheus' text format.",
    "/health": "Whether the server answers; the only one that needs no token, and it tells nothing else.",
    "/openapi.json": "The OpenAPI 3.1 document of the JSON routes.",
    "/docs": "The same as a page.",
}


def findings() -> dict[str, str]:
    """Each finding of diagnose_run with its severity and the first line of its rule's docstring."""
    found: dict[str, str] = {}
    for file in sorted(Path(opd_core.control.__path__[0]).glob("diagnosis/*_rules.py")):
        for rule in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(rule, ast.FunctionDef):
                told = (ast.get_docstring(rule) or "").partition("\n\n")[0]
                found |= {name: f"{severity}: {told}" for name, severity in _made(rule) if name not in found or told}
    return found


def _made(rule: ast.FunctionDef) -> list[tuple[str, str]]:
    """Name and severity of the findings that a function makes."""
    calls = [node for node in ast.walk(rule) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding"]
    texts = [[arg.value for arg in call.args[:2] if isinstance(arg, ast.Constant)] for call in calls]
    return [(str(pair[0]), str(pair[1]) if len(pair) > 1 else "by its extent") for pair in texts if pair]
