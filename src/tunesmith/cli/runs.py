"""The commands ``tunesmith runs …``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.said import figure, progress, report_run
from tunesmith.config.errors import UserError

if TYPE_CHECKING:
    from tunesmith.runs.folder import RunFolder

app = typer.Typer(help="List, show, stop, resume, continue, restart or delete runs.", no_args_is_help=True)


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
        figures = "".join(f"  {figure(name, value)}" for name, value in status.result.items())
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
    if status.note:
        typer.echo(status.note)
    for key, value in status.result.items():
        typer.echo(figure(key, value, ": "))
    best = found.best_step()
    shown = (f"step-{s}{' (best)' if s == best else ''}" for s in found.checkpoint_steps())
    typer.echo(f"checkpoints: {', '.join(shown) or 'none'}")
    files = sorted(p.relative_to(found.path) for p in found.artifacts.glob("*")) if found.artifacts.is_dir() else []
    typer.echo(f"artifacts: {', '.join(map(str, files)) or 'none'}")
    typer.echo(f"\n{found.config_path.read_text(encoding='utf-8').rstrip()}")


@app.command("resume")
def runs_resume(
    run: Annotated[
        str, typer.Argument(help="Id, part of it, path, or 'last'; with @step-N or @best an earlier checkpoint.")
    ],
    detach: Annotated[bool, typer.Option("--detach", help="Resume it as a process of its own.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Give up the checkpoints after the one that is named.")] = False,
) -> None:
    """Go on from the newest checkpoint to the planned end, as if the run had never stopped."""
    from tunesmith.verbs.go_on import go_back, later_checkpoints, split_point

    found, step = split_point(run)
    status = found.status()
    later = later_checkpoints(found, step)
    if status.state == "finished" and not later:
        raise UserError(
            f"run {found.id} is finished (step {status.step} of {status.total_steps})",
            hint=f"for longer: tunesmith runs continue {found.id} train.epochs=N; from step 0: tunesmith runs restart {found.id}",
        )
    _check_idle(found)
    if later and step is not None:
        named = ", ".join(f"step-{s}" for s in later)
        if not yes:
            if not sys.stdin.isatty():
                raise UserError(
                    f"going on from step {step} gives up {named} and the metrics after it", hint="add --yes"
                )
            typer.confirm(f"go on from step {step} and delete {named}?", abort=True)
        go_back(found, step)
    _go_on(found, detach)


@app.command("continue")
def runs_continue(
    run: Annotated[str, typer.Argument(help="Id, part of it, path, or 'last'.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[train.key=value]…", help="What changes, for example train.epochs=5.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Continue it as a process of its own.")] = False,
) -> None:
    """Go on for longer than was planned: a finished or stopped run with other limits."""
    from tunesmith.runs.folder import find_run
    from tunesmith.verbs.go_on import continue_with

    found = find_run(run)
    _check_idle(found)
    for line in continue_with(found, overrides or ()):
        print(line, file=sys.stderr)
    _go_on(found, detach)


@app.command("restart")
def runs_restart(
    run: Annotated[str, typer.Argument(help="Id, part of it, path, or 'last'.")],
    detach: Annotated[bool, typer.Option("--detach", help="Run it as a process of its own.")] = False,
) -> None:
    """The same config again from step 0, as a new run; the old one stays."""
    from tunesmith.runs.folder import find_run
    from tunesmith.verbs.go_on import restart

    new = restart(find_run(run))
    print(f"run {new.id} in {new.path}", file=sys.stderr)
    _go_on(new, detach)


def _check_idle(found: RunFolder) -> None:
    status = found.status()
    if status.active and status.pid not in (0, os.getpid()):
        raise UserError(
            f"run {found.id} is running (process {status.pid})", hint=f"follow it with: tunesmith runs show {found.id}"
        )


def _go_on(found: RunFolder, detach: bool) -> None:
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
    print(f"hint: go on with: tunesmith runs resume {found.id}", file=sys.stderr)


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
