"""Where the details of an unexpected error are kept: a file of its own under ``$TUNESMITH_HOME/logs``, named in what the person reads."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

from tunesmith.config.home import home


def keep_traceback() -> Path | None:
    """Write the traceback of the error that is being handled. None when nothing can be written there."""
    log = home() / "logs" / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc() + "\n")
    except OSError:
        return None
    return log
