"""The source text of a chat template: the date pinned in it, its errors in words. Renders nothing."""

from __future__ import annotations

import datetime
import json
import re

_LITERAL = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>[^'"]*)(?P=quote)\s*\)""")
_CALL = re.compile(r"strftime_now\s*\(")
_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_DIRECTIVES = [f"%{pad}{letter}" for pad in ("-", "") for letter in "aAbBcdeDfFGHIjmMnpRSTuUVwWxXyYzZ"]


def pinned_template(template: str, date: datetime.date) -> str:
    """The template with every ``strftime_now(…)`` saying ``date`` (midnight): it then renders the same tomorrow.

    A literal format becomes its text. A format held in a variable is written out by a macro of the same name in front of
    the template, because transformers hands templates plain values only, no functions.
    """
    moment = datetime.datetime.combine(date, datetime.time())
    pinned = _LITERAL.sub(lambda call: repr(moment.strftime(call.group("format"))), template)
    return _macro(moment) + re.sub(r"\A[ \t]+(?=\{[%#])", "", pinned) if _CALL.search(pinned) else pinned


def has_generation_tags(template: str) -> bool:
    """Does the template itself mark what the assistant writes (``{% generation %}``)?"""
    return bool(_TAG.search(template))


def refusal(error: Exception) -> str:
    """What a template's failure says: the words of its ``raise_exception``, else the kind of error too."""
    from jinja2 import TemplateSyntaxError
    from jinja2.exceptions import TemplateError, UndefinedError

    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno} of the template cannot be read: {error.message}"
    if isinstance(error, TemplateError) and not isinstance(error, UndefinedError):
        return f'"{error}"'
    return f"{type(error).__name__}: {error}"


def _macro(moment: datetime.datetime) -> str:
    # The empty expression at the end keeps Jinja's trim_blocks from eating a newline that the template begins with.
    text = 'format | replace("%%", "\\0")'
    for directive in _DIRECTIVES:
        written = moment.strftime(directive.replace("-", ""))
        text += f' | replace("{directive}", {json.dumps(written.lstrip("0") or "0" if "-" in directive else written)})'
    return f'{{% macro strftime_now(format) %}}{{{{ {text} | replace("\\0", "%") }}}}{{% endmacro %}}{{{{ "" }}}}'
