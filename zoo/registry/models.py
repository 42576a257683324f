"""The registry's tables. A change here needs a migration beside it: ``migrations/versions`` makes these tables, not SQLAlchemy."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, DateTime, ForeignKey, ForeignKeyConstraint, String, TypeDecorator
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

REVISION = "0002"
"""The migration that these tables belong to, known without importing Alembic."""


class Instant(TypeDecorator[datetime]):
    """An aware datetime in UTC on either database; SQLite alone would forget the timezone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None or value.tzinfo is None:
            return value if value is None else value.replace(tzinfo=UTC)
        return value.astimezone(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: Instant, dict[str, Any]: JSON, str: String}


class ModelRow(Base):
    __tablename__ = "model"

    name: Mapped[str] = mapped_column(primary_key=True)
    created: Mapped[datetime]


class VersionRow(Base):
    __tablename__ = "version"
    __table_args__ = (
        CheckConstraint("number >= 1", name="version_number_from_one"),
        CheckConstraint("status IN ('ready', 'retired')", name="version_status_known"),
    )

    model: Mapped[str] = mapped_column(ForeignKey("model.name", name="version_of_model"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    created: Mapped[datetime]
    digest: Mapped[str]
    metrics: Mapped[dict[str, Any]]
    lineage: Mapped[dict[str, Any]]
    tags: Mapped[dict[str, Any]]
    status: Mapped[str]
    aliases: Mapped[list[AliasRow]] = relationship(lazy="selectin", viewonly=True, order_by="AliasRow.name")


class AliasRow(Base):
    """The foreign key holds both columns, so an alias can only name a version of its own model.

    former: the version that it named before, which a rollback goes back to.
    """

    __tablename__ = "alias"
    __table_args__ = (ForeignKeyConstraint(["model", "number"], ["version.model", "version.number"], name="alias_of_version"),)

    model: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]
    former: Mapped[int | None]
