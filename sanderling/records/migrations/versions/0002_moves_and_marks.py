"""Assigning paths: moves of operations, plans that were shown, marks of operators."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

Moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "moves",
        sa.Column("operation_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("disk_id", sa.String(length=36), nullable=False),
        sa.Column("disk_name", sa.String(length=64), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("addresses", sa.JSON(), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("destination", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("gap_s", sa.Double(), nullable=True),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.Column("started_at", Moment, nullable=True),
        sa.Column("ended_at", Moment, nullable=True),
        sa.ForeignKeyConstraint(["operation_id"], ["operations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("operation_id", "position"),
    )
    op.create_index("ix_moves_disk_id", "moves", ["disk_id"], unique=False)
    op.create_table(
        "plans",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("layout", sa.JSON(), nullable=False),
        sa.Column("moves", sa.JSON(), nullable=False),
        sa.Column("requested_by", sa.String(length=64), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_plans_created_at", "plans", ["created_at"], unique=False)
    op.create_table(
        "marks",
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("gateway", sa.String(length=255), nullable=False),
        sa.Column("disk_id", sa.String(length=36), nullable=False),
        sa.Column("set_by", sa.String(length=64), nullable=False),
        sa.Column("set_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("kind", "gateway", "disk_id"),
    )
