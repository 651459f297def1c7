"""A page's process for tests: started on a free port, with runs in a folder of its own, killed at the end."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import web_fake

SOURCE = Path(__file__).parents[1] / "src"


class Server:
    """``address`` is what it printed; ``home`` is its TUNESMITH_HOME."""

    def __init__(self, home: Path, port: int = 0, *rest: str, command: tuple[str, ...] = web_fake.COMMAND) -> None:
        self.home = home
        self.environment = {**os.environ, "TUNESMITH_HOME": str(home), "PYTHONPATH": str(SOURCE)}
        self.environment.pop("TUNESMITH_RUNS", None)
        self.process = subprocess.Popen(
            [*web_fake.COMMAND, "web", str(port), *rest],
            env={**self.environment, "WEB_COMMAND": "\n".join(command)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.said: list[str] = []
        self.address = ""
        for line in self.process.stdout:
            self.said.append(line)
            if " is at http" in line:
                self.address = line.rpartition(" ")[2].strip()
                break
        assert self.address, f"the page did not start: {''.join(self.said)}"
        self.port = int(self.address.split(":")[2].split("/")[0])
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)

    def kill(self) -> None:
        """As ``kill -9`` does."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
