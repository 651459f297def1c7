"""What an export is compared with before it gets its name: the merged model, asked once for all exports that are made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tunesmith.config.base import Config
from tunesmith.config.progress import Progress
from tunesmith.verbs.targets import Target, open_weights, renderer_of

if TYPE_CHECKING:
    from tunesmith.chat.base import Engine
    from tunesmith.verbs.proof import Evidence


class MergedReference:
    """The merged model of ``target``. It is compared with the model as trained, and asked, when the first export is finished.

    ``evidence`` (``proof.Evidence``): every comparison, and of the last file some positions, for the proof of a deployment.
    """

    def __init__(self, target: Target, progress: Progress) -> None:
        from tunesmith.verbs.proof import Evidence

        self.target, self.progress = target, progress
        self.evidence: Evidence = Evidence()
        self._asked: tuple[Any, Sequence[tuple[int, ...]]] | None = None

    def proof_of(
        self, plugin: ModuleType, config: Config, merged: Path, name: str
    ) -> Callable[[Path], dict[str, Any]] | None:
        """The question that a target asks about its finished file or folder (to be called ``name``); None for what has no usual difference."""
        usual = getattr(plugin, "usual_kl", None)
        return None if usual is None else lambda work: self.compare(work, merged, name, config, float(usual(config)))

    def compare(self, work: Path, merged: Path, name: str, config: Config, usual: float) -> dict[str, Any]:
        """``work``, made of the folder ``merged``, in the engine it is used with. Returns figures for the report. Raises ExportError."""
        from tunesmith.verbs.proof import check_engine, check_file, check_kept_merge, in_words

        if self._asked is None:
            self._asked = check_kept_merge(self.target, merged, self.progress, evidence=self.evidence)
        reference, sequences = self._asked
        if work.is_dir():
            figures = check_engine(
                lambda: self._folder(work), name, usual, reference, sequences, self.progress, evidence=self.evidence
            )
        else:
            level = str(getattr(config, "level", "f16"))
            figures = check_file(
                work, level, reference, sequences, self.progress, name=name, evidence=self.evidence
            )  # fmt: skip
        if figures is None:
            return {"compared": self.evidence.missing[-1]}
        return {"compared": f"with the merged model: {in_words(figures)}"}

    def _folder(self, folder: Path) -> Engine:
        from tunesmith.chat.transformers_engine import TransformersEngine
        from tunesmith.verbs.opening import room_to_ask

        of_folder = Target(self.target.name, replace(self.target.base, folder=folder))
        room_to_ask(of_folder, "fp32")
        return TransformersEngine(
            open_weights(of_folder, precision="fp32"), renderer_of(self.target, exported=folder), folder.name
        )
