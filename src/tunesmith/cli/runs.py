"""The commands ``tunesmith runs …``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.said import progress, report_run
from tunesmith.config.errors import UserError

app = typer.Typer(help="List, show, stop, resume or delete runs.", no_args_is_help=True)


@app.command("list")
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


@app.command("show")
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


@app.command("resume")
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

    execute(found, progress())
    report_run(found)


@app.command("track")
def runs_track(
    run: Annotated[str, typer.Argument(help="Id, part of it, path, or 'last'.")],
    to: Annotated[
        list[str] | None, typer.Option("--to", help="A tracker; by default those of the run's config.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Write into the run folder only.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run has ended.")] = False,
) -> None:
    """Send the figures of a run to TensorBoard, Weights & Biases, SwanLab, MLflow or Trackio: those not sent yet."""
    from tunesmith.config.load import Source, validate
    from tunesmith.runs.config import TrackingConfig
    from tunesmith.runs.folder import find_run
    from tunesmith.runs.tracking import check, track

    found = find_run(run)
    stored = found.config_values().get("tracking") or {}
    values = (stored if isinstance(stored, dict) else {"to": stored}) | ({"to": to} if to else {})
    config = validate(TrackingConfig, values | ({"offline": True} if offline else {}), Source("--to", {}, []))
    if not config.to:
        raise UserError(
            f"run {found.id} names no tracker", hint=f"for example: tunesmith runs track {run} --to tensorboard"
        )
    check(config)
    failed = track(found, config, follow=follow, say=typer.echo)
    if failed:
        raise typer.Exit(1)


@app.command("stop")
def runs_stop(run: Annotated[str, typer.Argument(help="Id, part of it, path, or 'last'.")]) -> None:
    """Ask a running run to save a checkpoint and stop."""
    from tunesmith.runs.folder import find_run
    from tunesmith.runs.process import stop

    found = find_run(run)
    typer.echo(f"{found.id}: {stop(found)}")


@app.command("delete")
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
