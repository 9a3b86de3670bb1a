"""An index over the moves whose gap is known, newest first: every look at the metrics asks for some."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    is_known = sa.text("gap_s IS NOT NULL")
    op.create_index("ix_moves_gaps", "moves", ["started_at"], sqlite_where=is_known, postgresql_where=is_known)
