"""The version that an alias named before, so that one command goes back to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("alias", sa.Column("former", sa.Integer, nullable=True))


def downgrade() -> None:
    op.drop_column("alias", "former")
