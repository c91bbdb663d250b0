"""Groups of devices, what devices ran, and what they say of themselves."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "groups",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("query", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_groups")),
        sa.UniqueConstraint("name", name=op.f("uq_groups_name")),
    )
    op.create_table(
        "group_members",
        sa.Column("group_id", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["groups.id"], name=op.f("fk_group_members_group_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.id"], name=op.f("fk_group_members_device_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("group_id", "device_id", name=op.f("pk_group_members")),
    )
    op.create_index(op.f("ix_group_members_device_id"), "group_members", ["device_id"], unique=False)
    op.create_table(
        "device_descriptions",
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("meter", sa.String(length=16), nullable=False),
        sa.Column("runtime", sa.String(length=128), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.id"], name=op.f("fk_device_descriptions_device_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_device_descriptions")),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=96), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.id"], name=op.f("fk_runs_device_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_device_id"), "runs", ["device_id"], unique=False)
    _note_what_runs()


def _note_what_runs() -> None:
    """What devices reported last runs since now, as far as anybody knows."""
    devices = sa.table("devices", sa.column("id", sa.Integer()))
    facts = sa.table("facts", sa.column("key", sa.String()), sa.column("value", sa.JSON()))
    runs = sa.table(
        "runs",
        sa.column("device_id", sa.Integer()),
        sa.column("name", sa.String()),
        sa.column("version", sa.String()),
        sa.column("sha256", sa.String()),
        sa.column("since", sa.DateTime(timezone=True)),
    )
    connection = op.get_bind()
    known = set(connection.scalars(sa.select(devices.c.id)))
    found = [
        {
            "device_id": int(key.rpartition("/")[2]),
            "name": model["name"],
            "version": model["version"],
            "sha256": model.get("sha256"),
            "since": datetime.now(UTC),
        }
        for key, value in connection.execute(sa.select(facts).where(facts.c.key.startswith("reported/")))
        for model in value["models"]
        if model.get("version") is not None
    ]
    found = [run for run in found if run["device_id"] in known]
    if found:
        connection.execute(sa.insert(runs), found)
