"""What of a disk can be changed: who proves what at login, and since which revision its exports present what they do."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("disks", sa.Column("chap", sa.JSON(), nullable=True))
    op.add_column("disks", sa.Column("presented_at", sa.Integer(), nullable=False, server_default="0"))
