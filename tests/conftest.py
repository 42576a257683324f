"""Fixtures that every test of the core may ask for."""

from services import _postgres, _redis, postgres_url, redis_url

__all__ = ["_postgres", "_redis", "postgres_url", "redis_url"]
