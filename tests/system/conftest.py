"""Fixtures of the system tests."""

from environments import dependencies, environment, tracked, wheels

__all__ = ["dependencies", "environment", "tracked", "wheels"]
