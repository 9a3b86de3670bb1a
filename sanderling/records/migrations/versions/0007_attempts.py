"""What an operation waits for: since when it is claimed, and of each step when it was last tried, what came of it, when next."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"

Moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("operations", sa.Column("claimed_at", Moment, nullable=True))
    op.add_column("steps", sa.Column("tried_at", Moment, nullable=True))
    op.add_column("steps", sa.Column("next_try_at", Moment, nullable=True))
    op.add_column("steps", sa.Column("problem", sa.JSON(), nullable=True))
