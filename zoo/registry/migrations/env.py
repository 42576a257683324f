"""Alembic's entry: migrates the connection that ``zoo.registry.database`` hands over, within its transaction."""

from __future__ import annotations

from alembic import context

from zoo.registry.database import VERSION_TABLE
from zoo.registry.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata, version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
