"""The proof of a deployment: its six checks in the order in which they can stop it, and what is written down of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tunesmith.config.errors import ExportError, ServerError, UserError
from tunesmith.config.progress import Progress
from tunesmith.evaluate.tasks.comparison import Comparison
from tunesmith.export.deploy_report import NAMES, Check, Proof
from tunesmith.export.ollama import OllamaServer
from tunesmith.verbs.checks import answers, endings, numbers, prompts, shown, tokens
from tunesmith.verbs.checks.asked import asked
from tunesmith.verbs.checks.subject import Served, Subject, opened
from tunesmith.verbs.gguf import GgufExport, replace_folder
from tunesmith.verbs.proof import Evidence, check_parity
from tunesmith.verbs.targets import Target


class ProofFailed(ExportError):
    """Another model would be served than the one that was trained. ``proof`` tells how it was found out."""

    def __init__(self, proof: Proof, page: Path) -> None:
        failed = "; ".join(f"{check.number} {check.name}: {check.figures[0]}" for check in proof.broken)
        super().__init__(
            f"{proof.name}: {failed}. {proof.outcome}",
            hint=f"what each check means and what to do: {page}"
            + ("" if any(check.number == 3 for check in proof.broken) else "; --force goes on all the same"),
        )
        self.proof = proof


class Proving(AbstractContextManager["Proving"]):
    """The proof of one GGUF (``made_there``: the level that the server is to make of it). First `local`, which needs no server; then `on_server`, or `alone` without one; then `record`."""

    def __init__(
        self,
        target: Target,
        made: GgufExport,
        progress: Progress,
        *,
        force: bool = False,
        made_there: str | None = None,
    ) -> None:
        self.target, self.made, self.progress, self.force = target, made, progress, force
        self.made_there = made_there
        self.checks: dict[int, Check] = {}
        self.comparison: Comparison | None = None
        self.evidence = Evidence()
        self._held = ExitStack()
        self._subject: Subject | None = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._held.close()

    @property
    def broken(self) -> list[Check]:
        """Failed checks that forbid to serve the model."""
        return [check for check in self.checks.values() if check.broken]

    def local(self, evidence: Evidence | None = None, failure: UserError | None = None) -> bool:
        """Numbers up to the GGUF, and its tokens. ``evidence``: of numbers compared before, ``failure``: how that ended. Whether to go on.

        Numbers beyond the bound rename the file: nothing can be served then, not even by force.
        """
        if evidence is None:
            try:
                check_parity(self.target, [self.made], self.progress, evidence=self.evidence)
            except ExportError as error:
                failure = error
        else:
            self.evidence = evidence
        self._keep(numbers.local(self.evidence, failure))
        if failure is not None:
            return False
        rows = asked(self.target, replace_folder(self.target, self.made.merged), self.progress)
        self._subject = self._held.enter_context(opened(self.target, self.made, rows))
        self._keep(tokens.check(self._subject, None, self.progress))
        return not self.broken or self.force

    def on_server(self, server: OllamaServer, name: str, told: Mapping[str, Any], wrong: Mapping[str, str]) -> bool:
        """All six checks with the model ``name`` on the server. Whether it may get the name people use.

        Raises ServerError when the server stops answering; the check in which it did so says that.
        """
        subject = self._open()
        served = Served(server, name, told, wrong)
        with self._reaching(1):
            found, odd = prompts.check(subject, served, self.progress)
            self._keep(found)
        if self.checks[2].state == "passed":
            with self._reaching(2):
                self._keep(tokens.check(subject, served, self.progress, odd, prompts_differ=found.state == "failed"))
        if self.checks[3].state == "passed":
            with self._reaching(3):
                self._keep(
                    numbers.served(self.checks[3], subject, served, self.evidence, self.progress, self.made_there)
                )
        with self._reaching(4):
            self._keep(endings.check(subject, served, self.progress))
        self._keep(shown.check(subject, served))
        if not self.broken or self.force:
            with self._reaching(6):
                self._compare(served)
        return not self.broken or self.force

    @contextmanager
    def _reaching(self, number: int) -> Iterator[None]:
        """What a check found until the server stopped answering is kept; the check then proves nothing."""
        try:
            yield
        except ServerError as error:
            before = self.checks.get(number, Check(number, "not measured"))
            self._keep(replace(before, state="not measured", figures=(f"broke off: {error.message}", *before.figures)))
            raise

    def alone(self) -> bool:
        """The same as far as it goes without a server. Whether the model may be served."""
        subject = self._open()
        self._keep(prompts.check(subject, None, self.progress)[0])
        self._keep(endings.check(subject, None, self.progress))
        self._keep(shown.check(subject, None))
        self._compare(None)
        return not self.broken or self.force

    def record(self, name: str, outcome: str, facts: Mapping[str, str], server: Mapping[str, Any] | None) -> Proof:
        """The proof as it stands, written into the run's artifacts (or beside the GGUF)."""
        every = tuple(
            self.checks.get(number, Check(number, "not measured", ("not reached: the deployment ended before",)))
            for number in sorted(NAMES)
        )
        parity = self.evidence.hops[-1].figures.as_dict() if self.evidence.hops else None
        proof = Proof(name, outcome, every, dict(facts), self.comparison, parity, server)
        proof.save(self.folder)
        return proof

    @property
    def folder(self) -> Path:
        """Where the report lies."""
        return self.target.run.artifacts if self.target.run is not None else self.made.file.parent

    @property
    def page(self) -> Path:
        """The report for people."""
        return self.folder / "deploy_report.html"

    def _open(self) -> Subject:
        assert self._subject is not None, "local() comes first"
        return self._subject

    def _compare(self, served: Served | None) -> None:
        check, self.comparison = answers.check(self._open(), served, self.progress)
        self._keep(check)

    def _keep(self, check: Check) -> None:
        self.checks[check.number] = check
