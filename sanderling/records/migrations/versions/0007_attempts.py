"""What an operation waits for: its turn, since when it is claimed, when each step was last tried, what came of it, when next."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

Moment = sa.DateTime(timezone=True)
AT_WORK = sa.text("ended_at IS NULL AND state <> 'queued'")


def upgrade() -> None:
    op.add_column("operations", sa.Column("turn", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("operations", sa.Column("claimed_at", Moment, nullable=True))
    op.add_column("steps", sa.Column("tried_at", Moment, nullable=True))
    op.add_column("steps", sa.Column("next_try_at", Moment, nullable=True))
    op.add_column("steps", sa.Column("problem", sa.JSON(), nullable=True))
    for name, column in (("uq_operations_open_resource", "resource_id"), ("uq_operations_open_gateway", "gateway")):
        op.drop_index(name, "operations")
        op.create_index(name, "operations", [column], unique=True, sqlite_where=AT_WORK, postgresql_where=AT_WORK)
