"""The gateway that is drained or undrained, so that an index keeps the two apart; who asked for a plan is not kept with it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.drop_column("plans", "requested_by")
    op.add_column("operations", sa.Column("gateway", sa.String(length=255), nullable=True))
    operations = sa.table(
        "operations", sa.column("kind"), sa.column("params", sa.JSON), sa.column("gateway"), sa.column("ended_at")
    )
    is_open_drain = (operations.c.kind == "gateway.drain") & operations.c.ended_at.is_(None)  # an undrain may be open beside it
    op.execute(operations.update().where(is_open_drain).values(gateway=operations.c.params["gateway"].as_string()))
    op.create_index(
        "uq_operations_open_gateway",
        "operations",
        ["gateway"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
