"""Models, their versions, and aliases of versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "model",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("created", instant, nullable=False),
    )
    op.create_table(
        "version",
        sa.Column("model", sa.String, sa.ForeignKey("model.name", name="version_of_model"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("created", instant, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("lineage", sa.JSON, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.CheckConstraint("number >= 1", name="version_number_from_one"),
        sa.CheckConstraint("status IN ('ready', 'retired')", name="version_status_known"),
    )
    op.create_table(
        "alias",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["model", "number"], ["version.model", "version.number"], name="alias_of_version"),
    )


def downgrade() -> None:
    for table in ("alias", "version", "model"):
        op.drop_table(table)
