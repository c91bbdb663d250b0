"""Rollouts, their devices, assignments on their way, pins, leases."""

from __future__ import annotations

import json
from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    desired = op.create_table(
        "desired",
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("published_seq", sa.BigInteger(), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("renews", sa.Boolean(), nullable=False),
        _of_device("desired"),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_desired")),
    )
    op.create_index(op.f("ix_desired_expires_at"), "desired", ["expires_at"], unique=False)
    op.create_table(
        "device_reports",
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.String(length=32), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("stamp", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        _of_device("device_reports"),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_device_reports")),
    )
    op.create_table(
        "pins",
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        _of_device("pins"),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_pins")),
    )
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=96), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("approved", sa.Integer(), nullable=False),
        sa.Column("paused_by", sa.String(length=128), nullable=True),
        sa.Column("accepted_wave", sa.Integer(), nullable=False),
        sa.Column("accepted_failures", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
    )
    op.create_index(op.f("ix_rollouts_name"), "rollouts", ["name"], unique=False)
    op.create_index(op.f("ix_rollouts_phase"), "rollouts", ["phase"], unique=False)
    op.create_table(
        "rollout_members",
        sa.Column("rollout_id", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("board", sa.String(length=64), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("spare", sa.Boolean(), nullable=False),
        sa.Column("force", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("cause", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("base_version", sa.String(length=96), nullable=True),
        sa.Column("base_sha256", sa.String(length=64), nullable=True),
        sa.Column("figures", sa.JSON(), nullable=True),
        sa.Column("seen_stamp", sa.BigInteger(), nullable=False),
        _of_device("rollout_members"),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.id"], name=op.f("fk_rollout_members_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "device_id", name=op.f("pk_rollout_members")),
    )
    op.create_index(op.f("ix_rollout_members_device_id"), "rollout_members", ["device_id"], unique=False)
    op.create_index(op.f("ix_rollout_members_status"), "rollout_members", ["status"], unique=False)
    _take_over_assignments(desired)


def _of_device(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["device_id"], ["devices.id"], name=op.f(f"fk_{table}_device_id"), ondelete="CASCADE"
    )


def _take_over_assignments(desired: sa.Table) -> None:
    """Assignments of before are renewed like those that come; they were published by whoever made them."""
    connection = op.get_bind()
    devices = set(connection.execute(sa.text("SELECT id FROM devices")).scalars())
    facts = connection.execute(sa.text("SELECT key, value FROM facts WHERE key LIKE 'assigned/%'")).all()
    rows = []
    for key, value in facts:
        device_id = int(key.rpartition("/")[2])
        assignment = json.loads(value) if isinstance(value, str) else value
        if device_id in devices:
            rows.append(
                {
                    "device_id": device_id,
                    "device": assignment["device"],
                    "key_sha256": assignment["device_key_sha256"],
                    "seq": assignment["seq"],
                    "body": b"",
                    "published_seq": assignment["seq"],
                    "issued_at": datetime.fromisoformat(assignment["issued_at"]),
                    "expires_at": datetime.fromisoformat(assignment["expires_at"]),
                    "renews": True,
                }
            )
    if rows:
        connection.execute(desired.insert(), rows)
