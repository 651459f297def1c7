"""``tunesmith deploy``: a run or model -> GGUF -> proof -> Ollama, or the one command to finish it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.chat.ollama_api import ServerGoneError, address, check_name, is_loopback
from tunesmith.config.errors import UserError
from tunesmith.config.progress import Progress
from tunesmith.export.base import NotProvedError, Report
from tunesmith.export.beside import modelfile_beside
from tunesmith.export.deploy_report import ERRORS, Proof
from tunesmith.export.ollama import OllamaServer, manual_command
from tunesmith.export.ollama_deploy import DeployReport, trial_name
from tunesmith.export.ollama_deploy import deploy as put
from tunesmith.export.ollama_quantize import check_quantize
from tunesmith.models.gguf_import import is_import
from tunesmith.verbs.gguf import GgufExport, gguf, modelfile_for
from tunesmith.verbs.merged import merged_folder
from tunesmith.verbs.proof import Evidence
from tunesmith.verbs.prove import ProofFailed, Proving
from tunesmith.verbs.reference import MergedReference
from tunesmith.verbs.stopping import in_words, kept_in
from tunesmith.verbs.targets import Target, target_of


@dataclass(frozen=True)
class Deployment:
    """``report`` is None when no server answered; ``command`` then does the rest by hand. ``proof`` is None without ``verify``."""

    made: GgufExport
    report: DeployReport | None
    command: str
    server: str
    proof: Proof | None = None


def deploy(
    text: str,
    name: str,
    progress: Progress,
    *,
    level: str = "q8_0",
    url: str | None = None,
    verify: bool = True,
    force: bool = False,
    proved: tuple[GgufExport, Evidence] | None = None,
    quantize_on_server: str | None = None,
) -> Deployment:
    """Export ``text`` at ``level``, create ``name`` on the server at ``url``, prove that it is the model that was trained.

    Without a server everything up to it is done and proved in this process. ``verify`` False: nothing is proved but what the
    server reads back. ``force``: a model whose proof fails is served all the same. ``proved``: an export of ``text`` whose numbers
    were compared already. ``quantize_on_server``: the file is sent in 16 or 32 bits, and the server makes this level of it. Raises UserError, and ProofFailed: the server then has what it had before.
    """
    check_name(name)
    check_address(url)
    there = None if quantize_on_server is None else check_quantize(quantize_on_server, level)
    with OllamaServer(url) as server:
        if url is not None:
            server.version()  # who names a server means it: said before the long work
        target = target_of(text, progress)
        anew = read_anew(text, target, level)
        if anew is not None:
            progress.say(f"warning: {anew}")
        with in_words(lambda: kept_in(target.run.artifacts if target.run is not None else Path.cwd())):
            made, evidence, failure = (*proved, None) if proved is not None else _export(target, level, progress)
        if failure is not None and not verify:
            raise failure
        command = manual_command(made.modelfile, name) + ("" if there is None else f" --quantize {there}")
        if not verify:
            alive = url is not None or server.alive()
            report = put(server, made.file, name, made.content, progress, quantize=there) if alive else None
            return Deployment(made, report, command, server.url)
        with Proving(target, made, progress, force=force, made_there=there) as proving:
            facts = {
                "model": target.name if target.run is not None else text,
                "level": made.level,
                "gguf": str(made.file),
                "modelfile": str(made.modelfile),
                "template": made.template_reason,
            }
            if anew is not None:
                facts["made_from_a_GGUF"] = anew
            if made.left_out:
                facts["not_in_the_Modelfile"] = "; ".join(made.left_out)
            if not proving.local(evidence, failure):
                outcome = "The proof failed before anything was sent to a server."
            elif url is not None or server.alive():
                trial = trial_name(name)
                try:
                    report, outcome, facts = _on_server(proving, server, name, trial, facts, progress)
                except UserError as error:  # the server went away, refused, or made another model than was sent
                    outcome = f"Not deployed: {error.message}. A {name} that was there before is as it was."
                    if isinstance(error, ServerGoneError):
                        outcome += f" The model on trial may be left there: `ollama rm {trial}`."
                    proving.record(name, outcome, facts | {"server_url": server.url}, None)
                    found = f"what was found until then: {proving.page}"
                    error.hint = found if error.hint is None else f"{error.hint}; {found}"
                    raise
                if report is not None:
                    proof = proving.record(name, outcome, facts, asdict(report))
                    return Deployment(made, report, command, server.url, proof)
            elif proving.alone():
                facts |= {"to_finish": command}
                open_ = [
                    f"{c.number} {c.name}"
                    for c in proving.checks.values()
                    if c.number in ERRORS and c.state != "passed"
                ]
                how = "proved in llama.cpp here" + (f", all but {', '.join(open_)}" if open_ else "")
                outcome = f"No Ollama server answers at {server.url}; {how}. To finish: {command}"
                if made.left_out:
                    outcome += f" (the model made so lacks something: {'; '.join(made.left_out)})"
                proof = proving.record(name, outcome, facts, None)
                return Deployment(made, None, command, server.url, proof)
            else:
                outcome = f"The proof failed in llama.cpp here; no Ollama server answers at {server.url}."
            raise ProofFailed(proving.record(name, outcome, facts, None), proving.page)


def _export(
    target: Target, level: str, progress: Progress
) -> tuple[GgufExport, Evidence | None, NotProvedError | None]:
    """The GGUF; the evidence of its numbers when it was made now, None when it was there; how its proof failed: it then lies aside."""
    reference = MergedReference(target, progress)
    try:
        made = gguf(target, progress, level=level, reuse=True, reference=reference)
    except NotProvedError as error:
        merged, file = error.source or merged_folder(target, progress), error.place
        content, reason = modelfile_for(target, merged, file)
        made = GgufExport(
            level, file, modelfile_beside(file), merged, content, reason, Report(file, file.stat().st_size)
        )
        return made, reference.evidence, error
    return made, reference.evidence if made.fresh else None, None


def _on_server(
    proving: Proving, server: OllamaServer, name: str, trial: str, facts: dict[str, str], progress: Progress
) -> tuple[DeployReport | None, str, dict[str, str]]:
    """(the report, None when the proof failed; what became of the model; facts with the server's)."""

    class Refused(Exception):
        """Leaves the deployment: the model on trial is removed."""

    def prove(trial: str, shown: Mapping[str, Any], wrong: Mapping[str, str]) -> None:
        if not proving.on_server(server, trial, shown, wrong):
            raise Refused

    there = server.show(name) is not None
    facts = facts | {"server_url": server.url, "server_version": server.version()}
    try:
        report = put(
            server, proving.made.file, name, proving.made.content, progress,
            prove=prove, quantize=proving.made_there, trial=trial,
        )  # fmt: skip
    except Refused:
        kept = f"the {name} that was there before answers as before" if there else f"there is no {name} on the server"
        return None, f"The proof failed: the model on trial was removed from {server.url}; {kept}.", facts
    facts |= {"sha256": report.digest}
    forced = " It is served by force, against its proof." if proving.broken else ""
    return (
        report,
        f"{name} answers at {server.url}{', in place of the model of that name before' if there else ''}.{forced}",
        facts,
    )


def read_anew(text: str, target: Target, level: str) -> str | None:
    """What to know of a model that is given as a GGUF and deployed as it is; None for all others."""
    if target.learned is not None or not is_import(target.base.folder):
        return None
    return (
        f"{text} is a GGUF already: its numbers are read and rounded anew to {level.upper()}, which adds to what they lost before; "
        f"to serve the file as it is, write `FROM {text}` into a Modelfile and say `ollama create NAME -f Modelfile`"
    )


def check_address(url: str | None) -> None:
    """Another machine is deployed to only by ``--url``. Raises UserError when OLLAMA_HOST alone names one."""
    found = address(url)
    if url is None and not is_loopback(found):
        raise UserError(
            f"OLLAMA_HOST names another machine, {found}",
            hint=f"to deploy there, say so: --url {found} (whoever reaches that server can change its models: it asks for no password)",
        )
