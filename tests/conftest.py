"""Fixtures that every test of the core may ask for."""

from __future__ import annotations

import pytest
from services import _postgres, _redis, postgres_url, redis_url
from shop import Shop, make_shop

__all__ = ["_postgres", "_redis", "postgres_url", "redis_url"]


@pytest.fixture(scope="session")
def trained_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A small shop with churn and campaign trained and promoted (about 12 s, once). Change only a ``copy`` of it."""
    return make_shop(tmp_path_factory.mktemp("trained") / "shop")
