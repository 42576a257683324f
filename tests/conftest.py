"""Fixtures that every test of the core may ask for."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import settings
from services import _postgres, _redis, postgres_url, redis_url
from shop import Shop, make_shop

__all__ = ["_postgres", "_redis", "postgres_url", "redis_url"]


settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile("nightly", deadline=None, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def trained_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A small shop with churn and campaign trained and promoted (about 12 s, once). Change only a ``copy`` of it."""
    return make_shop(tmp_path_factory.mktemp("trained") / "shop")


@pytest.fixture
def no_thread_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next thread of ``zoo.deadline.Threads`` cannot be begun, as where the system has none left."""
    real, refused = threading.Thread.start, threading.Event()

    def start(self: threading.Thread) -> None:
        if self.name == "zoo-answer" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
