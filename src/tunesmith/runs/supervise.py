"""``python -m tunesmith.runs.supervise FOLDER``: run the command of a work folder, and write down how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from tunesmith.runs import work
from tunesmith.runs.folder import process_start


def main(folder: Path) -> int:
    """Its exit code: that of the command; 128 + n when signal n ended it."""
    if os.name != "nt":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command hears it and answers
    mine = replace(work.read(folder), pid=os.getpid(), pid_started=process_start(os.getpid()))
    mine.save()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "NO_COLOR": "1", "TUNESMITH_PLAIN": "1"}
    with (folder / "out.txt").open("wb") as out, (folder / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "tunesmith", *mine.arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
            env=environment,
            restore_signals=True,
            preexec_fn=_hear if os.name != "nt" else None,
        )
        code = child.wait()
    code = code if code >= 0 else 128 - code
    replace(mine, code=code, ended=time.time()).save()
    return code


def _hear() -> None:
    """The command hears Ctrl-C again, which its parent does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
