"""What of a disk can be changed: who proves what, its schedule, and since which revision its exports present what they do."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("disks", sa.Column("chap", sa.JSON(), nullable=True))
    op.add_column("disks", sa.Column("schedule", sa.JSON(), nullable=True))
    op.add_column("disks", sa.Column("snapshot_due_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_disks_snapshot_due_at", "disks", ["snapshot_due_at"])
    op.add_column("disks", sa.Column("presented_at", sa.Integer(), nullable=False, server_default="0"))
