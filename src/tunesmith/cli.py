"""The table of commands. A verb, or the page, is imported only when it is called: ``--help`` needs no torch."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith import __version__
from tunesmith.config.errors import UserError
from tunesmith.config.home import home

if TYPE_CHECKING:
    from tunesmith.config.progress import Progress
    from tunesmith.runs.folder import RunFolder

app = typer.Typer(
    name="tunesmith",
    help="From a data set to a fine-tuned language model answering in Ollama. Start with: tunesmith demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
runs_app = typer.Typer(help="List, show, stop, resume or delete runs.", no_args_is_help=True)
data_app = typer.Typer(help="Look at data before training.", no_args_is_help=True)

RunOrModel = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_MODEL",
        help="A run (its id, a part of it, or 'last'), a folder, hf:org/name, ms:org/name, demo, base+adapter.",
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of an answer.")]


def _progress() -> Progress:
    from tunesmith.verbs.console import console_progress

    return console_progress()


@app.command()
def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key.sub=value]…", help="Change a setting of the demo's training.")
    ] = None,
) -> None:
    """The whole way once: get a small model, fine-tune it, compare, convert, prove, deploy. A few minutes."""
    from tunesmith.verbs.demo import demo as verb

    verb(_progress(), tuple(overrides or ()))


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

        check_parts(loaded, _progress())
        typer.echo(dump(loaded), nl=False)
        return
    from tunesmith.verbs.train import create, execute

    run = create(loaded, _progress())
    if detach:
        from tunesmith.runs.process import spawn

        spawn(run, ["runs", "resume", str(run.path)])
        typer.echo(str(run.path))
        return
    print(f"run {run.id} in {run.path}", file=sys.stderr)
    execute(run, _progress())
    _report_run(run)


def _report_run(run: RunFolder) -> None:
    status = run.status()
    figures = ", ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in status.result.items())
    typer.echo(
        f"{run.id}: {status.state} at step {status.step} of {status.total_steps}{', ' + figures if figures else ''}"
    )
    if status.state == "stopped":
        print(f"hint: go on with: tunesmith runs resume {run.id}", file=sys.stderr)
    else:
        commands = [f"chat {run.id}", f"compare {run.id}@base {run.id}", f"deploy {run.id} --name my-model"]
        print("next:\n" + "\n".join(f"  tunesmith {command}" for command in commands), file=sys.stderr)


app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")


@app.command()
def export(
    model: RunOrModel,
    to: Annotated[str, typer.Option("--to", help="hf (merged safetensors) or gguf.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write; by default into the run's artifacts, or here for models."),
    ] = None,
    type_: Annotated[str | None, typer.Option("--type", help="GGUF numbers: f32, f16, bf16 or q8_0.")] = None,
) -> None:
    """Merge into safetensors or convert to GGUF; the result is checked against what it was made from."""
    from tunesmith.verbs.export import export as verb

    place, checks = verb(model, to, _progress(), out=out, type_=type_)
    for line in checks:
        print(f"  {line}", file=sys.stderr)
    typer.echo(str(place))


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL", help="A run, a model (ID@base for a run's base), a .gguf file, or ollama:NAME."
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
    verb(model, _progress(), prompt=prompt, system=system, **sampling)


@app.command()
def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="A B…", help="Two or more: runs, ID@base, models, .gguf files, ollama:NAME.")
    ],
    prompt: Annotated[list[str] | None, typer.Option("-p", "--prompt", help="A prompt; repeat for more.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A file with one prompt per line, or a JSON list.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A data set: its questions are asked and its loss is measured.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most prompts that are asked.")] = 12,
    max_tokens: MaxTokens = 128,
) -> None:
    """Ask several models the same and show the answers side by side, with held-out loss and perplexity."""
    from tunesmith.verbs.compare import print_comparison, run_comparison

    if len(models) < 2:
        raise UserError("compare needs at least two models", hint="for example: tunesmith compare last@base last")
    result, folder = run_comparison(
        models, _progress(), prompts=prompt or (), prompts_file=prompts, data=data, limit=limit, max_tokens=max_tokens
    )
    print_comparison(result, most=limit)
    if folder is not None:
        print(f"report: {folder / 'comparison.md'}", file=sys.stderr)


@app.command()
def deploy(
    model: RunOrModel,
    name: Annotated[str, typer.Option("--name", help="What it is called in Ollama, for example my-model:7b.")],
    to: Annotated[str, typer.Option("--to", help="Where to: ollama.")] = "ollama",
    level: Annotated[str, typer.Option("--level", help="GGUF numbers: f32, f16, bf16 or q8_0.")] = "q8_0",
    url: Annotated[
        str | None, typer.Option("--url", help="The Ollama server; by default OLLAMA_HOST, else this machine.")
    ] = None,
) -> None:
    """Make a run answer in Ollama: merge, convert, prove that it is the same model, create it, ask it once."""
    if to != "ollama":
        raise UserError(f"cannot deploy to {to!r}", hint="only ollama is built in")
    from tunesmith.verbs.deploy import deploy as verb

    done = verb(model, name, _progress(), type_=level.lower(), url=url)
    typer.echo(f"GGUF: {done.made.file}\nModelfile: {done.made.modelfile} ({done.made.template_reason})")
    if done.report is None:
        typer.echo(f"No Ollama server answers at {done.server}. Where Ollama runs, finish with:\n    {done.command}")
        return
    for note in done.report.notes:
        print(f"note: {note}", file=sys.stderr)
    typer.echo(f"{name} is at {done.report.url}, checked: {', '.join(done.report.checks)}")
    typer.echo(f"> {done.report.question}\n{done.report.answer}")


@runs_app.command("list")
def runs_list(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """All runs, newest first."""
    from tunesmith.runs.folder import list_runs

    runs = list_runs()
    if as_json:
        from dataclasses import asdict

        typer.echo(
            json.dumps(
                [{"id": r.id, "path": str(r.path), **asdict(r.status())} for r in runs], ensure_ascii=False, indent=2
            )
        )
        return
    if not runs:
        typer.echo("no runs yet; start one with: tunesmith demo")
        return
    width = max(len(r.id) for r in runs)
    for run in runs:
        status = run.status()
        figures = "".join(f"  {name.replace('_', ' ')} {value:.4f}" for name, value in status.result.items())
        if status.error:
            figures = f"  {status.error.splitlines()[0]}"
        typer.echo(f"{run.id.ljust(width)}  {status.state:<11}  step {status.step}/{status.total_steps}{figures}")


@runs_app.command("show")
def runs_show(run: Annotated[str, typer.Argument(help="Id, part of it, path, or 'last'.")]) -> None:
    """Where a run stands, what it made and how it was configured."""
    from tunesmith.runs.folder import find_run

    found = find_run(run)
    status = found.status()
    typer.echo(
        f"{found.id}: {status.state}{', ' + status.what if status.what else ''}, step {status.step} of {status.total_steps}"
    )
    typer.echo(f"folder: {found.path}")
    if status.error:
        typer.echo(f"error: {status.error}")
    for key, value in status.result.items():
        typer.echo(f"{key.replace('_', ' ')}: {value:.4f}")
    typer.echo(f"checkpoints: {', '.join(f'step-{s}' for s in found.checkpoint_steps()) or 'none'}")
    files = sorted(p.relative_to(found.path) for p in found.artifacts.glob("*")) if found.artifacts.is_dir() else []
    typer.echo(f"artifacts: {', '.join(map(str, files)) or 'none'}")
    typer.echo(f"\n{found.config_path.read_text(encoding='utf-8').rstrip()}")


@runs_app.command("resume")
def runs_resume(
    run: Annotated[str, typer.Argument(help="Id, part of it, path, or 'last'.")],
    detach: Annotated[bool, typer.Option("--detach", help="Resume it as a process of its own.")] = False,
) -> None:
    """Go on from the newest checkpoint, as if the run had never stopped."""
    from tunesmith.runs.folder import find_run

    found = find_run(run)
    status = found.status()
    if status.state == "finished":
        raise UserError(
            f"run {found.id} is finished (step {status.step} of {status.total_steps})",
            hint="start a new one with tunesmith train",
        )
    if status.active and status.pid not in (0, os.getpid()):
        raise UserError(
            f"run {found.id} is running (process {status.pid})", hint=f"follow it with: tunesmith runs show {found.id}"
        )
    if detach:
        from tunesmith.runs.process import spawn

        spawn(found, ["runs", "resume", str(found.path)])
        typer.echo(str(found.path))
        return
    from tunesmith.verbs.train import execute

    execute(found, _progress())
    _report_run(found)


@runs_app.command("stop")
def runs_stop(run: Annotated[str, typer.Argument(help="Id, part of it, path, or 'last'.")]) -> None:
    """Ask a running run to save a checkpoint and stop."""
    from tunesmith.runs.folder import find_run
    from tunesmith.runs.process import stop

    found = find_run(run)
    typer.echo(f"{found.id}: {stop(found)}")


@runs_app.command("delete")
def runs_delete(
    run: Annotated[str, typer.Argument(help="Id or path (a part of the id is not enough here).")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a run's folder with all it made."""
    from tunesmith.runs.folder import find_run

    found = find_run(run)
    if run not in (found.id, str(found.path)) and Path(run).absolute() != found.path:
        raise UserError(
            f"{run!r} is only a part of {found.id}", hint="write the whole id, so that nothing else is deleted"
        )
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"deleting {found.id} needs a yes", hint="add --yes")
        typer.confirm(f"delete {found.path} with everything in it?", abort=True)
    found.delete()
    typer.echo(f"deleted {found.id}")


@data_app.command("check")
def data_check(
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SET… [key.sub=value]…",
            help="Registered names, files, folders, patterns, hf:/ms:org/name, or '{set: …, columns: {…}}'; settings as in `train`.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Count tokens with this model's tokenizer and template.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A training config (YAML): its data, model and settings.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            "--fix",
            metavar="OUT",
            help="Write a cleaned copy (.jsonl) and OUT.dropped.jsonl, the list of what was dropped or changed.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw how turns and tokens are spread.")
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="With a model: render every row, however long that takes; else 20,000 drawn ones where all would take over a minute.",
        ),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every finding, not the first few of each kind.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Read every row and say what is in it and what is wrong. Exit code 2 when an error is found, 0 with warnings."""
    from tunesmith.verbs import data as verb

    named, overrides = _sets_and_settings(sets or ())
    run, reference = verb.settings(named, overrides, config, model)
    stage_named = config is not None or any(o.startswith("stage") for o in overrides)
    checked = verb.check(
        run, _progress(), tokens=reference is not None, full=full, fix=fix, picture=plot, stage_named=stage_named
    )
    if as_json:
        for piece in verb.as_json(checked):
            typer.echo(piece, nl=False)
    else:
        from rich.console import Console

        from tunesmith.verbs.data_report import report

        console = Console(highlight=False, soft_wrap=True)
        for line in report(checked, everything=everything):
            console.print(line)
    if not checked.ok:
        raise typer.Exit(2)


@data_app.command("templates")
def data_templates(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one's Jinja text.")] = None,
) -> None:
    """Chat templates by name, for model.template: what each ends a turn with, and its form for tools and thinking."""
    from tunesmith.verbs.templates import listing, text_of

    if name is not None:
        typer.echo(text_of(name), nl=False)
        return
    for template in listing():
        ends = "the tokenizer's eos" if template.end_of_turn == "eos_token" else template.end_of_turn
        typer.echo(
            f"{template.name:<18} {template.family}\n    end of turn: {ends}; tools: {template.tools}; thinking: {template.thinking}"
        )


@data_app.command("show")
def data_show(
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SET [key.sub=value]…",
            help="A registered name, file, folder, pattern, hf:/ms:org/name, or '{set: …, columns: {…}}'.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", min=1, max=1000, help="How many rows.")] = 3,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Show the tokens of this model, the learned ones coloured.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="A training config (YAML).")] = None,
    row: Annotated[int | None, typer.Option("--row", min=1, help="Begin at this row, counted from 1.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Rows drawn at random with this seed.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page that needs nothing else.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Show rows as a model sees them: special tokens visible, what is learned coloured."""
    from tunesmith.verbs import data as verb
    from tunesmith.verbs import data_show as show

    named, overrides = _sets_and_settings(sets or ())
    run, reference = verb.settings(named, overrides, config, model)
    shown = show.show(run, _progress(), count=count, row=row, seed=seed, tokens=reference is not None)
    if html is not None:
        show.write_page(shown, html)
        print(f"page: {html}", file=sys.stderr)
    elif as_json:
        typer.echo(json.dumps(show.as_dict(shown), ensure_ascii=False, indent=1))
    else:
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        for line in show.lines(shown, marks=not console.is_terminal):
            console.print(line)


def _sets_and_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sets (names, or ``{set: …, columns: …}``), and ``key=value`` settings; what is a file is a set, whatever its name."""
    from tunesmith.verbs.data import is_there

    settings = [w for w in words if "=" in w and not w.startswith("{") and not is_there(Path(w))]
    return [w for w in words if w not in settings], settings


@app.command()
def schema(kind: Annotated[str, typer.Argument(help="What to describe: train.")] = "train") -> None:
    """JSON Schema of the train config: every setting with its help, for editors and forms."""
    if kind != "train":
        raise UserError(f"there is no schema {kind!r}", hint="known: train")
    from tunesmith.config.schema import schema as draw
    from tunesmith.verbs.run_config import TrainRun

    typer.echo(json.dumps(draw(TrainRun), ensure_ascii=False, indent=2))


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
    """Entry point. A person's mistake: one message and exit code 2. Ours: the traceback is kept, exit code 1."""
    # On a busy machine threads wait asleep: spinning ones stall each other; on a quiet one spinning is faster (docs/log.md).
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars; ours say more
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")  # Windows consoles and LANG=C
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        log = home() / "logs" / f"error-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8")
        except OSError:  # the folder cannot be written to: say it all here
            traceback.print_exc()
        print(
            f"unexpected error: {type(error).__name__}: {error}\nhint: this is a fault of Tunesmith's; the details are in {log}",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
