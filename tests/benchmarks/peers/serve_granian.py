"""The application of ``zoo serve`` for ``granian --interface asgi --factory serve_granian:application`` with BENCH_ROOT, the project.

What ``zoo.service.server`` does beside uvicorn is done here alike, except for the watch over the registry.
"""

from __future__ import annotations

import gc
import os
import sys

from fastapi import FastAPI

from zoo.features import Features
from zoo.project import Project
from zoo.service.access import Access
from zoo.service.app import app
from zoo.service.load import Limiter
from zoo.service.settings import Settings
from zoo.service.versions import Source, Versions


def application() -> FastAPI:
    project = Project.open(os.environ["BENCH_ROOT"])
    settings, features = Settings.of(project), Features.open(project.root)
    access, source = Access.of(settings), Source(project, features)
    api = app(
        Versions({"churn": source.load("churn")}, {"churn": "churn"}, source),
        features,
        hosts=("localhost", "127.0.0.1", "[::1]") if access is None else None,
        access=access,
        limiter=Limiter(settings.in_flight),
        read_timeout=settings.read_timeout,
    )
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    return api
