"""The one command, `opd`: the server and the few things a person does in a terminal.

Exit codes: 0 done; 1 it ended otherwise than hoped (a run failed, problems found); 2 wrong input or an error, told in
one sentence on standard error; 130 interrupted (a run goes on by itself).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from opd_core import __version__
from opd_core.errors import ConfigError, OPDError

Command = Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run one command; returns the exit code."""
    options = parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except OPDError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        sys.stderr.close()
        return 1


def parser() -> argparse.ArgumentParser:
    """The command line; a command imports what it needs when it runs, so that `serve` starts fast."""
    top = argparse.ArgumentParser(
        prog="opd", description="Improve a small local language model by on-policy distillation."
    )
    top.add_argument("--version", action="version", version=f"opd {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    _add_serve(commands)
    _add(
        commands, "demo", _demo, "distil a small model on this machine, driven as an assistant would, and show the gain"
    )
    run = _add(commands, "run", _run, "start the run of a configuration file and follow it")
    run.add_argument("file", type=Path, metavar="FILE", help="configuration, .yaml or .json")
    status = _add(commands, "status", _status, "show a run: the current one, else the latest")
    status.add_argument("run_id", nargs="?", metavar="RUN_ID", help="a run's id or a unique beginning of it")
    stop = _add(commands, "stop", _stop, "ask a run to stop after its step, with a checkpoint, and wait for that")
    stop.add_argument("run_id", metavar="RUN_ID", help="a run's id or a unique beginning of it")
    stop.add_argument(
        "--force", action="store_true", help="kill it if it does not stop in time; work since its checkpoint is lost"
    )
    report = _add(commands, "report", _report, "write a page about a run: the current one, else the latest")
    report.add_argument("run_id", nargs="?", metavar="RUN_ID", help="a run's id or a unique beginning of it")
    _add_install(commands)
    doctor = _add(
        commands, "doctor", _doctor, "check this machine, its settings, its home and the server as a host starts it"
    )
    doctor.add_argument("--port", type=int, default=8765, help="where to look for a server over HTTP (default: 8765)")
    doctor.add_argument("--repair", action="store_true", help="mend what was left behind in the home, and nothing else")
    _add_money(commands)
    gguf = _add(commands, "import-gguf", _import_gguf, "turn a Llama-architecture GGUF file into an MLX model folder")
    gguf.add_argument("file", type=Path, metavar="FILE", help="the GGUF file")
    gguf.add_argument("folder", type=Path, metavar="DIR", help="the model folder to make; it must not exist yet")
    gguf.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="weights (default: float16)"
    )
    return top


def _add_money(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The ledger's commands: for a person alone, none of them is a tool."""
    ledger = _add(commands, "ledger", _ledger, "show what was spent on teachers: all budgets, or the calls of one")
    ledger.add_argument("scope", nargs="?", metavar="RUN", help="a run's id, or a month such as month:2026-11")
    ledger.add_argument("--json", action="store_true", help="exact amounts, for a program")
    adjust = _add(commands, "adjust", _adjust, "correct what a closed call cost, by the provider's bill")
    adjust.add_argument("call", metavar="CALL", help="a call's id from `opd ledger RUN`")
    adjust.add_argument("--delta-usd", required=True, metavar="X", help="dollars more, or less: -0.0123")
    adjust.add_argument("--why", required=True, help="what the provider's bill says")
    month = _add(commands, "set-month", _set_month, "set this month's limit for everything in this home")
    month.add_argument("--to-usd", required=True, metavar="X", help="dollars, such as 150")
    month.add_argument("--why", required=True, help="why; it stays in the ledger")
    unfreeze = _add(commands, "unfreeze", _unfreeze, "admit paid calls again after a bill above its reservation")
    unfreeze.add_argument("scope", metavar="SCOPE", help="a run id, or a month such as month:2026-11")
    unfreeze.add_argument("--why", required=True, help="what you compared with the provider's usage page")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, command: Command, purpose: str
) -> argparse.ArgumentParser:
    added = commands.add_parser(name, help=purpose, description=purpose[:1].upper() + purpose[1:] + ".")
    added.set_defaults(command=command)
    return added


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = _add(commands, "serve", _serve, "serve the tools to an AI assistant over standard input and output (MCP)")
    serve.add_argument("--http", action="store_true", help="serve MCP, JSON and live events over HTTP instead")
    http = serve.add_argument_group("with --http")
    http.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    http.add_argument("--port", type=int, default=8765, help="port to listen on; 0 takes a free one (default: 8765)")
    http.add_argument("--allow-remote", action="store_true", help="let other machines reach the server")
    http.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a further Host to answer to")
    http.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="a web page that may call")


def _add_install(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from server.hosts.known import HOSTS

    install = _add(commands, "install", _install, "enter the server into the list of an assistant's program")
    install.add_argument("host", choices=tuple(HOSTS), metavar="HOST", help=f"one of {', '.join(HOSTS)}")
    install.add_argument("--print", action="store_true", dest="print_only", help="show what to write; write nothing")
    install.add_argument("--home", type=Path, metavar="DIR", help="the OPD_HOME that the program shall use")


def _serve(options: argparse.Namespace) -> int:
    if options.http:
        return _serve_http(options)
    for_http = ("host", "port", "allow_remote", "allow_host", "allow_origin")
    unchanged = parser().parse_args(["serve"])
    if any(getattr(options, name) != getattr(unchanged, name) for name in for_http):
        raise ConfigError("--host, --port and the --allow- options need --http. Add it, or leave them out.")
    return _serve_stdio()


def _serve_http(options: argparse.Namespace) -> int:
    from server.serving import serve_http
    from server.settings import read_settings

    return serve_http(
        read_settings(),
        options.host,
        options.port,
        allow_remote=options.allow_remote,
        names=tuple(options.allow_host),
        origins=tuple(options.allow_origin),
    )


def _serve_stdio() -> int:
    import gc

    # Imports make a hundred thousand objects that live as long as the process; collecting among them is a sixth of
    # the start.
    gc.disable()
    from server.app import build_server
    from server.home_use_cases import HomeUseCases
    from server.settings import read_settings
    from server.upkeep import tend_soon

    settings = read_settings()
    server = build_server(settings)
    gc.freeze()
    gc.enable()
    if sys.stdin.isatty():
        print(
            "Serving MCP on standard input; connect an assistant to it (README.md), or press Ctrl-C.", file=sys.stderr
        )
    tend_soon(HomeUseCases(settings))
    server.run("stdio")
    return 0


def _ledger(options: argparse.Namespace) -> int:
    from server.commands.ledger import show

    return show(options.scope, options.json)


def _adjust(options: argparse.Namespace) -> int:
    from server.commands.ledger import adjust

    return adjust(options.call, options.delta_usd, options.why)


def _set_month(options: argparse.Namespace) -> int:
    from server.commands.ledger import set_month

    return set_month(options.to_usd, options.why)


def _unfreeze(options: argparse.Namespace) -> int:
    from server.commands.ledger import unfreeze

    return unfreeze(options.scope, options.why)


def _demo(_: argparse.Namespace) -> int:
    from server.commands.demo import run_demo

    return run_demo()


def _run(options: argparse.Namespace) -> int:
    from server.commands.terminal import start_and_follow

    return start_and_follow(options.file)


def _status(options: argparse.Namespace) -> int:
    from server.commands.terminal import print_status

    return print_status(options.run_id)


def _stop(options: argparse.Namespace) -> int:
    from server.commands.terminal import stop_run

    return stop_run(options.run_id, options.force)


def _report(options: argparse.Namespace) -> int:
    from server.commands.terminal import print_report

    return print_report(options.run_id)


def _doctor(options: argparse.Namespace) -> int:
    from server.commands.doctor import examine
    from server.commands.repairing import look_after_home

    return max(examine(options.port), look_after_home(options.repair))


def _install(options: argparse.Namespace) -> int:
    from server.hosts.install import install

    print("\n".join(install(options.host, options.home, print_only=options.print_only)))
    return 0


def _import_gguf(options: argparse.Namespace) -> int:
    from server.commands.importing import import_model

    made = import_model(str(options.file.absolute()), options.folder, options.dtype)
    print(f"{made['path']}: {made['architecture']}, {made['num_parameters'] / 1e6:.0f} million parameters.")
    print("Give this path as base_model_path, or its folder's name when it lies under OPD_HOME/models.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
