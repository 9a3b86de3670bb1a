"""Runs the revisions on the connection that `Records.migrate` hands over, inside its transaction."""

from alembic import context

from sanderling.records.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
