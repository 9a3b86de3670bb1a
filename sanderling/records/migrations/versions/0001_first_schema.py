"""The first schema: operations with their steps, the index of disks, subnets, tokens, history."""

import sqlalchemy as sa
from alembic import op

OPEN, WAITING = sa.text("ended_at IS NULL"), sa.text("cast_at IS NULL")

revision = "0001"
down_revision = None

Moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create_what_is_served()
    _create_operations()
    _create_what_hangs_on_operations()
    _create_history_and_tokens()


def _create_what_is_served() -> None:
    op.create_table(
        "subnets",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("cidr", sa.String(length=49), nullable=False),
        sa.Column("interface", sa.String(length=15), nullable=False),
        sa.Column("pool_first", sa.String(length=45), nullable=False),
        sa.Column("pool_last", sa.String(length=45), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("cidr"),
    )
    op.create_table(
        "disks",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("iqn", sa.String(length=223), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("access", sa.String(length=16), nullable=False),
        sa.Column("initiators", sa.JSON(), nullable=False),
        sa.Column("allow_any", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("started", sa.Boolean(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("changed_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("iqn"),
        sa.UniqueConstraint("name"),
    )
    op.create_index("ix_disks_state", "disks", ["state"], unique=False)
    op.create_table(
        "paths",
        sa.Column("disk_id", sa.String(length=36), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("prefix_len", sa.Integer(), nullable=False),
        sa.Column("interface", sa.String(length=15), nullable=False),
        sa.Column("subnet", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["disk_id"], ["disks.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["subnet"],
            ["subnets.name"],
        ),
        sa.PrimaryKeyConstraint("disk_id", "index"),
        sa.UniqueConstraint("address", name="uq_paths_address"),
    )


def _create_operations() -> None:
    op.create_table(
        "operations",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("resource_id", sa.String(length=36), nullable=False),
        sa.Column("resource_name", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("requested_by", sa.String(length=64), nullable=False),
        sa.Column("traceparent", sa.String(length=55), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("claimed_by", sa.String(length=128), nullable=True),
        sa.Column("claim_epoch", sa.Integer(), nullable=False),
        sa.Column("claimed_until", Moment, nullable=True),
        sa.Column("cast_at", Moment, nullable=True),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("started_at", Moment, nullable=True),
        sa.Column("ended_at", Moment, nullable=True),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_operations_open", "operations", ["claimed_until"], unique=False, sqlite_where=OPEN, postgresql_where=OPEN)
    op.create_index(
        "ix_operations_outbox", "operations", ["created_at"], unique=False, sqlite_where=WAITING, postgresql_where=WAITING
    )
    op.create_index("ix_operations_resource_id", "operations", ["resource_id"], unique=False)
    op.create_index(
        "uq_operations_open_resource", "operations", ["resource_id"], unique=True, sqlite_where=OPEN, postgresql_where=OPEN
    )


def _create_what_hangs_on_operations() -> None:
    op.create_table(
        "steps",
        sa.Column("operation_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("deadline_s", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("started_at", Moment, nullable=True),
        sa.Column("ended_at", Moment, nullable=True),
        sa.ForeignKeyConstraint(["operation_id"], ["operations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("operation_id", "position"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("operation_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.ForeignKeyConstraint(["operation_id"], ["operations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("actor", "key"),
    )


def _create_history_and_tokens() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at", Moment, nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=True),
        sa.Column("operation_id", sa.String(length=36), nullable=True),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("source_id", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("source_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_kind", "events", ["kind"], unique=False)
    op.create_index("ix_events_operation_id", "events", ["operation_id"], unique=False)
    op.create_index("ix_events_resource_id", "events", ["resource_id"], unique=False)
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("expires_at", Moment, nullable=True),
        sa.Column("last_used_at", Moment, nullable=True),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
        sa.UniqueConstraint("name"),
    )
