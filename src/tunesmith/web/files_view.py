"""The files that a run made, as links; pictures are shown."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from nicegui import ui

from tunesmith.web import figures
from tunesmith.web.language import Texts
from tunesmith.web.run_files import Artifact
from tunesmith.web.shell import tag


def draw_files(id: str, artifacts: Sequence[Artifact], t: Texts) -> None:
    """One link for each artifact of the run ``id``."""
    if not artifacts:
        tag("p", t("run.artifacts_empty"), "quiet")
    for artifact in artifacts:
        # the moment of its change: a picture that was drawn anew is fetched anew
        address = f"/run/{quote(id)}/files/{quote(artifact.name)}?v={artifact.changed:.0f}"
        name = artifact.name.removeprefix("artifacts/")
        with tag("a", css="file", href=address, target="_blank"):
            if artifact.is_picture:
                tag("img", src=address, alt=name, loading="lazy")
            with ui.element("span").classes("file-line"):
                tag("span", name)
                tag("span", figures.size(artifact.bytes), "quiet")
