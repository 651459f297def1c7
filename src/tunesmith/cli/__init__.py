"""The table of commands. A verb, or the page, is imported only when it is called: ``--help`` needs no torch."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from tunesmith import __version__
from tunesmith.cli.data import app as data_app
from tunesmith.cli.deploy import compare, deploy
from tunesmith.cli.export import export
from tunesmith.cli.runs import app as runs_app
from tunesmith.cli.said import MaxTokens, progress, report_run
from tunesmith.config.errors import Terminated, UserError
from tunesmith.config.faults import keep_traceback

TWICE = 5.0
"""Seconds after a SIGTERM in which another one is taken for the same: what is cleaned up meanwhile is not disturbed."""


class Stopped(Exception):
    """A command was interrupted: out of reach of typer, which makes an exit code of it and says nothing."""

    def __init__(self, by: KeyboardInterrupt) -> None:
        super().__init__(*by.args)
        self.code = 143 if isinstance(by, Terminated) else 130


class Commands(typer.core.TyperGroup):
    """The table of commands; an interruption leaves it as ``Stopped``."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises Stopped."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as by:
            raise Stopped(by) from by


app = typer.Typer(
    cls=Commands,
    name="tunesmith",
    help="From a data set to a fine-tuned language model answering in Ollama. Start with: tunesmith demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key.sub=value]…", help="Change a setting of the demo's training.")
    ] = None,
) -> None:
    """The whole way once: get a small model, fine-tune it, compare, convert, prove, deploy. A few minutes."""
    from tunesmith.verbs.demo import demo as verb

    verb(progress(), tuple(overrides or ()))


@app.command()
def train(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG.yaml]", help="A YAML config; or give model=… and data=… alone.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key.sub=value]…", help="Settings on top of the file, for example train.lr=1e-4."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start it as a process of its own and print its run folder.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the config and print it with every default filled in.")
    ] = False,
) -> None:
    """Fine-tune a model. `tunesmith train model=demo data=my.json` is enough; `tunesmith schema` lists every setting."""
    from tunesmith.config.load import dump
    from tunesmith.verbs.run_config import load_config

    settings = list(overrides or [])
    if config is not None and "=" in config and not Path(config).exists():
        settings.insert(0, config)
        config = None
    elif config is not None and Path(config).suffix not in (".yaml", ".yml"):
        example = (
            f"data={config}" if Path(config).suffix in (".json", ".jsonl", ".csv", ".parquet") else f"model={config}"
        )
        raise UserError(
            f"{config!r} is not a YAML config", hint=f"settings are written key=value, for example {example}"
        )
    loaded = load_config(Path(config) if config is not None else None, settings)
    if check:
        from tunesmith.verbs.train import check_parts

        check_parts(loaded, progress())
        typer.echo(dump(loaded), nl=False)
        return
    from tunesmith.verbs.train import create, execute

    run = create(loaded, progress())
    if detach:
        from tunesmith.runs.process import spawn

        spawn(run, ["runs", "resume", str(run.path)])
        typer.echo(str(run.path))
        return
    print(f"run {run.id} in {run.path}", file=sys.stderr)
    execute(run, progress())
    report_run(run)


app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")


app.command()(export)


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL",
            help="A run, a model (ID@base for a run's base), a .gguf file (with +adapter.gguf), ollama:NAME or URL#MODEL.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Ask this one thing and leave.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token each time.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Choose among the tokens that together have this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the choice when the temperature is above 0.")] = 0,
    max_tokens: MaxTokens = 512,
) -> None:
    """Talk to a model in the terminal."""
    from tunesmith.verbs.chat import chat as verb

    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    verb(model, progress(), prompt=prompt, system=system, **sampling)


app.command()(compare)
app.command()(deploy)


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="What to describe: train, export, deploy or compare.")] = "train",
) -> None:
    """JSON Schema of a training config, or of a command's options: every setting with its help, for editors and forms."""
    from tunesmith.config.base import Config
    from tunesmith.config.schema import schema as draw
    from tunesmith.verbs.requests import REQUESTS
    from tunesmith.verbs.run_config import TrainRun

    known: dict[str, type[Config]] = {"train": TrainRun, **REQUESTS}
    if kind not in known:
        raise UserError(f"there is no schema {kind!r}", hint=f"known: {', '.join(known)}")
    typer.echo(json.dumps(draw(known[kind]), ensure_ascii=False, indent=2))


@app.command()
def doctor() -> None:
    """What this machine has and what is missing: versions, GPU, memory, disk, hubs, Ollama."""
    from tunesmith.verbs.doctor import examine, report

    lines = examine()
    typer.echo(report(lines))
    if any(line.ok is False for line in lines):
        raise typer.Exit(1)


@app.command()
def web(
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine needs the printed token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    token: Annotated[str | None, typer.Option(help="Token for other addresses; made up when not given.")] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")] = False,
) -> None:
    """The page in the browser: start runs and watch them."""
    from tunesmith.web.app import serve

    serve(host=host, port=port, open_browser=open_browser, token=token)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"tunesmith {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point. A person's mistake: one message and exit code 2. Ours: the traceback is kept, exit code 1. Ctrl-C: 130, SIGTERM: 143,
    with a line that says what is kept."""
    # On a busy machine threads wait asleep: spinning ones stall each other; on a quiet one spinning is faster (docs/log.md).
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars; ours say more
    for name in ("torchao", "torch.utils._pytree"):  # what optional parts of them cannot do here is nobody's business
        logging.getLogger(name).setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")  # Windows consoles and LANG=C
    last = -TWICE

    def terminate(number: int, frame: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= TWICE:
            raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (Stopped, KeyboardInterrupt) as error:
        found = error if isinstance(error, Stopped) else Stopped(error)
        print(f"stopped{': ' if found.args else ''}{found}", file=sys.stderr)
        raise SystemExit(found.code) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        log = keep_traceback()
        if log is None:  # the folder cannot be written to: say it all here
            traceback.print_exc()
        print(
            f"unexpected error: {type(error).__name__}: {error}\nhint: this is a fault of Tunesmith's; the details are in {log}",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
