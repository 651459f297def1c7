"""The level chosen for a person: the finest that fits a size, or the smallest that stays within a bound of damage."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunesmith.config.errors import UserError
from tunesmith.evaluate.quality_rules import size
from tunesmith.export.base import NotProvedError, remove
from tunesmith.verbs.gguf import GgufExport
from tunesmith.verbs.levels import Maker
from tunesmith.verbs.quality import Quality

SURELY = 0.95
"""Of an estimate, so much is needed in any case."""
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def bytes_of(text: str) -> int:
    """``4GB`` (10^9 bytes), ``4GiB`` (2^30), ``700 MB`` … as bytes. Raises UserError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?B)\s*", text.upper())
    if found is None or float(found[1]) <= 0:
        raise UserError(
            f"--target-size {text}: expected a size", hint="for example 4GB (10^9 bytes each), 3.5GiB or 700MB"
        )
    return int(float(found[1]) * UNITS[found[2]])


def check_size(maker: Maker, limit: int) -> None:
    """Raises UserError when the smallest level of the base alone is larger than ``limit`` bytes: nothing needs to be merged to know."""
    ladder = maker.ladder(maker.target.base.folder)
    if ladder and SURELY * ladder[0][1] > limit:
        raise _none_fits(limit, ladder)


def _none_fits(limit: int, ladder: Sequence[tuple[str, int]]) -> UserError:
    smallest = f"{ladder[0][0]} with about {size(ladder[0][1])}" if ladder else "none"
    return UserError(
        f"no level of this model fits into {size(limit)}", hint=f"the smallest is {smallest}; or take a smaller model"
    )


def for_size(maker: Maker, limit: int) -> GgufExport:
    """The finest level whose file has at most ``limit`` bytes and that is proved. Raises UserError that names the smallest possible."""
    ladder, refuted = maker.ladder(), None
    fitting = [level for level, estimate in reversed(ladder) if estimate <= limit]
    for level in fitting:
        maker.progress.say(f"{level}: about {size(dict(ladder)[level])}, within {size(limit)}")
        try:
            made = maker.make(level)
        except NotProvedError as error:
            if error.source is not None:
                raise
            refuted = error
            maker.progress.say(f"warning: {error.message}; trying the next")
            maker.remove(level)
            continue
        if made.report.bytes <= limit:
            maker.keep(level)
            maker.tidy()
            return made
        maker.progress.say(f"{level} came out larger ({size(made.report.bytes)}); trying the next")
        maker.remove(level)
    maker.tidy()
    raise refuted or _none_fits(limit, ladder)


def for_kl(maker: Maker, quality: Quality, bound: float) -> GgufExport:
    """The smallest level whose mean KL on the first text is at most ``bound`` nats, by bisection over the levels by size.

    The level below it in size was measured too, and is not within. Levels that were tried and not taken are removed; one that could not be
    made is told and left out: nothing follows from it for the others. Raises UserError that names the best that was reached.
    """
    ladder = [level for level, _ in maker.ladder()]
    text = quality.texts[0].name
    tried: dict[str, float] = {}
    passed: dict[str, UserError] = {}
    low, high = 0, len(ladder)  # everything before low is not within, high is within (or the end)
    best: GgufExport | None = None
    while low < high:
        middle = (low + high) // 2
        level = ladder[middle]
        try:
            made = maker.make(level)
            tried[level] = quality.divergence(made.file, level).mean_kl
            words = f"mean KL {tried[level]:.3g} on {text}"
        except NotProvedError as error:
            if error.source is not None:
                raise
            tried[level], words = float("inf"), error.message
            remove(error.place)
        except UserError as error:
            passed[level] = error
            maker.progress.say(f"warning: {level} is passed over: {error.message}")
            maker.remove(level)
            del ladder[middle]
            high -= 1
            continue
        within = tried[level] <= bound
        maker.progress.say(f"{level}: {words}, {'within' if within else 'not within'} {bound:g}")
        if within:
            if best is not None:
                maker.remove(best.level)
            best, high = made, middle
        else:
            maker.remove(level)
            low = middle + 1
    if best is not None:
        maker.keep(best.level)
    maker.tidy()
    if best is None:
        if passed and not tried:
            raise next(iter(passed.values()))
        near = min(tried, key=lambda level: tried[level], default=None)
        reached = f"the best is {near} with {tried[near]:.3g}" if near else "there is no level"
        raise UserError(f"no level stays within a mean KL of {bound:g} on {text}", hint=f"{reached}; raise --max-kl")
    if passed:
        maker.progress.say(
            f"warning: {best.level} is the smallest of those that could be made; without {', '.join(passed)}"
        )
    return best
