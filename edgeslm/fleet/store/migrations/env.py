"""Run by Alembic: applies the steps on the connection, and within the transaction, that the store hands over."""

from __future__ import annotations

from alembic import context

from edgeslm.fleet.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
