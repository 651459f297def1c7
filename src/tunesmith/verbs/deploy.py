"""``tunesmith deploy``: a run or model -> GGUF -> checks -> Ollama, or the one command to finish it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.chat.ollama_api import check_name
from tunesmith.config.files import write_json
from tunesmith.config.progress import Progress
from tunesmith.evaluate.parity import Parity
from tunesmith.export.ollama import DeployReport, OllamaServer, manual_command
from tunesmith.verbs.gguf import GgufExport, gguf
from tunesmith.verbs.proof import check_parity
from tunesmith.verbs.targets import target_of


@dataclass(frozen=True)
class Deployment:
    """``report`` is None when no server answered; ``command`` then does the rest by hand."""

    made: GgufExport
    report: DeployReport | None
    command: str
    server: str


def deploy(
    text: str,
    name: str,
    progress: Progress,
    *,
    level: str = "q8_0",
    url: str | None = None,
    proved: tuple[GgufExport, Parity] | None = None,
) -> Deployment:
    """Export ``text`` at ``level``, prove the file against the merged model, create ``name`` on the server, ask it once.

    ``proved``: an export of ``text`` that was compared already. Raises UserError; nothing is sent before the local checks passed.
    """
    check_name(name)
    target = target_of(text, progress)
    if proved is None:
        made = gguf(target, progress, level=level, reuse=True)
        figures = check_parity(target, [made], progress)[0]
    else:
        made, figures = proved
    with OllamaServer(url) as server:
        if url is not None or server.alive():
            if server.warning:
                progress.say(f"warning: {server.warning}")
            report: DeployReport | None = server.deploy(made.file, name, made.content, progress)
        else:
            report = None
        address = server.url
    folder = target.run.artifacts if target.run is not None else made.file.parent
    record: dict[str, Any] = {
        "name": name,
        "gguf": str(made.file),
        "level": level,
        "parity": figures.as_dict(),
        "template": made.template_reason,
    }
    write_json(folder / "deploy_report.json", record | {"server": asdict(report) if report is not None else None})
    return Deployment(made, report, manual_command(made.file.parent, name), address)
