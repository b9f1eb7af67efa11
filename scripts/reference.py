"""Write docs/OPD_API_REFERENCE.md from the models, tables and texts that the program itself uses.

    python -m scripts.reference [FILE]

The same sources give the same text. `tests/scripts/test_reference.py` fails when the file in docs/ is another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from opd_core import __version__
from opd_core.config import GROUPS, RunConfig, short_name
from opd_core.state.metrics import METRICS
from scripts.reference_doors import door_sections
from scripts.reference_forms import argument_rows, code, field_rows, listed, table, type_words
from scripts.reference_meanings import END_REASONS, KINDS, SETTINGS, STATES, findings
from server.arguments.jobs import OWN_PROBE_ARGUMENTS
from server.arguments.slim import input_schema
from server.prompts import PROMPTS
from server.protocol.texts import TOOLS
from server.resources import PARTS, RUNS_URI, run_uri
from server.routes import ROUTES
from server.verbs import VERBS
from server.web.openapi import document

FILE = Path(__file__).resolve().parent.parent / "docs" / "OPD_API_REFERENCE.md"
HEAD = f"""\
# Reference

Version {__version__}. Written by `make reference` from the models that the program checks and answers with; edit those.
What to choose and why stands in [OPD_USER_GUIDE.md](OPD_USER_GUIDE.md), what to do when something is wrong in
[OPD_TROUBLESHOOTING.md](OPD_TROUBLESHOOTING.md).

- [Tools](#tools)
- [Settings of a run](#settings-of-a-run)
- [Settings of the installation](#settings-of-the-installation)
- [States and end reasons](#states-and-end-reasons)
- [Metrics](#metrics)
- [Diagnoses](#diagnoses)
- [Resources and prompts](#resources-and-prompts)
- [HTTP](#http)
- [Live messages](#live-messages)
- [Prometheus figures](#prometheus-figures)
- [Errors](#errors)
- [Commands](#commands)
- [Parts of answers](#parts-of-answers)
"""
SHARED = {"start_distillation", "estimate_cost", "probe_teacher"}
RUN_OWN = ("run_id", "session_id", "client_request_id", "confirmed")


def reference() -> str:
    """The whole page."""
    parts = [HEAD, tools(), run_settings(), installation(), states(), metrics(), diagnoses(), resources_and_prompts()]
    return "\n".join([*parts, *door_sections(), answer_parts()]).rstrip() + "\n"


def tools() -> str:
    """Every tool: what it does, its arguments, its answer, its route."""
    parts = [
        "## Tools\n",
        "Every answer has `summary` (what happened) and `next_step` (what to call next). An argument that is not known "
        "is refused, and nothing is done.\n",
    ]
    for name in VERBS:
        parts += [f"### {name}\n", *_tool(name)]
    return "\n".join(parts)


def _tool(name: str) -> Iterator[str]:
    text, verb = TOOLS[name], VERBS[name]
    route = next(route for route in ROUTES if route.verb == name)
    yield f"{text.description}\n"
    hints = {"reads only": text.read_only, "may end something": text.destructive, "may call out": text.open_world}
    told = [hint for hint, applies in hints.items() if applies]
    shown = "a picture and text" if verb.shows_image else f"[{verb.answer.__name__}](#{verb.answer.__name__.lower()})"
    yield f"Route {code(f'{route.method} {route.path}')}. Answer: {shown}. Hints: {', '.join(told) or 'none'}.\n"
    schema = input_schema(verb.arguments)
    if name in SHARED:
        own = {key: value for key, value in schema["properties"].items() if key in OWN_PROBE_ARGUMENTS}
        own = own if name == "probe_teacher" else {}
        yield f"Arguments: the [settings of a run](#settings-of-a-run){' and' if own else '.'}\n"
        schema = {"properties": own}
    if schema["properties"]:
        yield table(("argument", "value", "default", "meaning"), argument_rows(schema)) + "\n"
    elif name not in SHARED:
        yield "No arguments.\n"


def run_settings() -> str:
    """The fields of RunConfig, by group of the YAML form."""
    rows = {row[0].strip("`"): row for row in argument_rows(input_schema(RunConfig))}
    parts = [
        "## Settings of a run\n",
        "The arguments of start_distillation, and the fields of a run's file. In a file they may stand in groups, "
        "where a field drops its group's name: `teacher: {timeout_seconds: 60}`.\n",
    ]
    for group, names in {**GROUPS, "": RUN_OWN}.items():
        parts.append(f"### {group}\n" if group else "### In no group\n")
        shorter = {short_name(group, name): name for name in names if group and short_name(group, name) != name}
        parts.append(table(("setting", "value", "default", "meaning"), [rows[name] for name in names]) + "\n")
        if shorter:
            parts.append(f"In the group {code(group)} they are {listed(shorter)}.\n")
    return "\n".join(parts)


def installation() -> str:
    """What a person sets for all runs."""
    intro = (
        "The environment wins over `OPD_HOME/.env`, which wins over `OPD_HOME/settings.toml` (names in lower case "
        "without `OPD_`). No tool changes them.\n"
    )
    rows = [[code(name), *told] for name, told in SETTINGS.items()]
    return f"## Settings of the installation\n\n{intro}\n" + table(("name", "meaning", "default"), rows) + "\n"


def states() -> str:
    """States, end reasons and kinds of jobs."""
    tables = (("state", STATES), ("end_reason", END_REASONS), ("kind", KINDS))
    shown = [table((head, "meaning"), [[code(name), told] for name, told in rows.items()]) for head, rows in tables]
    return "## States and end reasons\n\n" + "\n\n".join(shown) + "\n"


def metrics() -> str:
    """Every metric with unit and direction."""
    rows = [[code(name), metric.unit, metric.direction, metric.meaning] for name, metric in METRICS.items()]
    intro = (
        "Of get_metrics, plot_metrics and the files in `OPD_HOME/metrics`. `better`: the direction that is better.\n"
    )
    return f"## Metrics\n\n{intro}\n" + table(("metric", "unit", "better", "meaning"), rows) + "\n"


def diagnoses() -> str:
    """The findings of diagnose_run."""
    rows = [[code(name), told] for name, told in findings().items()]
    intro = (
        "The verdict is the gravest finding, else `healthy`, or `too_early`. Severities: `stops` (it cannot go on), "
        "`harms` (it makes the model worse), `limits` (it keeps it from being better or judged), `note`.\n"
    )
    return f"## Diagnoses\n\n{intro}\n" + table(("finding", "when"), rows) + "\n"


def resources_and_prompts() -> str:
    """What MCP hosts show beside tools."""
    resources = [[code(RUNS_URI), "application/json", "The newest runs, comparisons and probes with state and scores."]]
    resources += [[code(run_uri("{run_id}", name)), part.mime_type, part.description] for name, part in PARTS.items()]
    prompts = []
    for name, (_, description, _, arguments) in PROMPTS.items():
        told = [f"{code(argument.name)}{' (needed)' if argument.required else ''}" for argument in arguments]
        prompts.append([code(name), ", ".join(told), description])
    parts = [
        "## Resources and prompts\n",
        "Hosts complete run ids, and are told when a resource that they follow has changed.\n",
        table(("resource", "type", "holds"), resources) + "\n",
        table(("prompt", "arguments", "asks for"), prompts) + "\n",
        "Clients that declare the Tasks extension (`io.modelcontextprotocol/tasks`) get a task where others wait: its "
        "id is the run_id or job_id. Clients that can ask the user (elicitation) are asked to show the question of a "
        "start that may cost more than a dollar; to others the tool says to ask and to call again with `confirmed`.\n",
    ]
    return "\n".join(parts)


def answer_parts() -> str:
    """Every model that an answer is made of."""
    schemas = document()["components"]["schemas"]
    parts = ["## Parts of answers\n"]
    for name in sorted(schemas):
        if name in ("RunConfig", *(verb.arguments.__name__ for verb in VERBS.values())):
            continue
        schema = schemas[name]
        told = schema.get("description", "").partition("\n")[0]
        parts.append(f"### {name}\n" + (f"\n{told}\n" if told else ""))
        rows = field_rows(schema)
        parts.append((table(("field", "value", "meaning"), rows) if rows else type_words(schema)) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("file", type=Path, nargs="?", default=FILE)
    file: Path = options.parse_args().file
    file.write_text(reference(), encoding="utf-8")
    print(f"{file.name}: {len(reference().splitlines())} lines.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
