"""Checks that need a model's tokens, one per file: a class ``Check`` (``render.checks.base``), found by its name."""
