"""The command ``init``."""

from __future__ import annotations

import typer

from zoo.errors import ZooError


def init(ctx: typer.Context) -> None:  # noqa: ARG001
    """Make a project for your own log."""
    raise ZooError("zoo init is not there yet")
