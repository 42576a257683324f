"""Fixtures of the system tests."""

from browser import browser
from environments import dependencies, environment, tracked, wheels

__all__ = ["browser", "dependencies", "environment", "tracked", "wheels"]
