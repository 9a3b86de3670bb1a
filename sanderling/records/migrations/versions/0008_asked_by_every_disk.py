"""What every new disk asks: which operations of a kind are open, how many addresses of a subnet are taken, which may be free."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

OPEN = sa.text("ended_at IS NULL")


def upgrade() -> None:
    op.create_index("ix_operations_open_kind", "operations", ["kind", "ended_at"], sqlite_where=OPEN, postgresql_where=OPEN)
    op.create_index("ix_paths_subnet", "paths", ["subnet", "address"])
    op.add_column("subnets", sa.Column("free_from", sa.String(45), nullable=True))
