"""The tables of the records. Alembic revisions under migrations/ make them; a test fails when the two differ."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Double, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator


class Moment(TypeDecorator[datetime]):
    """A time with its zone, also on SQLite, which forgets it: UTC in, UTC out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        assert value.tzinfo is not None, "a time without a zone"
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: Moment, dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


class DiskRow(Base):
    """The index of a disk; the image's own metadata is the description that counts. Removed when the disk is deleted."""

    __tablename__ = "disks"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    iqn: Mapped[str] = mapped_column(String(223), unique=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    access: Mapped[str] = mapped_column(String(16))
    initiators: Mapped[list[str]]
    allow_any: Mapped[bool]
    chap: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # its secrets are sealed
    schedule: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    snapshot_due_at: Mapped[datetime | None] = mapped_column(index=True)  # by the schedule
    state: Mapped[str] = mapped_column(String(16), index=True)
    started: Mapped[bool]
    revision: Mapped[int]
    presented_at: Mapped[int] = mapped_column(default=0, server_default="0")
    generation: Mapped[int]
    created_at: Mapped[datetime]
    changed_at: Mapped[datetime]
    paths: Mapped[list["PathRow"]] = relationship(
        back_populates="disk", order_by="PathRow.index", cascade="all, delete-orphan", lazy="selectin"
    )


class PathRow(Base):
    """An address that a disk answers on. The unique address is what makes two allocations at once safe."""

    __tablename__ = "paths"
    __table_args__ = (UniqueConstraint("address", name="uq_paths_address"), Index("ix_paths_subnet", "subnet", "address"))

    disk_id: Mapped[str] = mapped_column(ForeignKey("disks.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(Integer, primary_key=True)
    address: Mapped[str] = mapped_column(String(45))
    prefix_len: Mapped[int]
    interface: Mapped[str] = mapped_column(String(15))
    subnet: Mapped[str] = mapped_column(ForeignKey("subnets.name"))
    disk: Mapped[DiskRow] = relationship(back_populates="paths")


class SubnetRow(Base):
    """`free_from` is an address of the pool before which none is free; empty when nobody has looked."""

    __tablename__ = "subnets"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    cidr: Mapped[str] = mapped_column(String(49), unique=True)
    interface: Mapped[str] = mapped_column(String(15))
    pool_first: Mapped[str] = mapped_column(String(45))
    pool_last: Mapped[str] = mapped_column(String(45))
    free_from: Mapped[str | None] = mapped_column(String(45))
    created_at: Mapped[datetime]


_AT_WORK = "ended_at IS NULL AND state <> 'queued'"


class OperationRow(Base):
    """An operation. `cast_at` empty means that its wake-up is not noted as cast.

    The partial unique indexes are what keeps two operations off one resource, and a drain and an undrain off one gateway: the
    second insert fails. `gateway` is empty for all other operations, and of those there may be any number. Those that are queued
    on a resource are in the order of their `turn`, which is 0 for one that never waited.
    """

    __tablename__ = "operations"
    __table_args__ = (
        Index(
            "uq_operations_open_resource",
            "resource_id",
            unique=True,
            sqlite_where=text(_AT_WORK),
            postgresql_where=text(_AT_WORK),
        ),
        Index(
            "uq_operations_open_gateway",
            "gateway",
            unique=True,
            sqlite_where=text(_AT_WORK),
            postgresql_where=text(_AT_WORK),
        ),
        Index(
            "ix_operations_outbox", "created_at", sqlite_where=text("cast_at IS NULL"), postgresql_where=text("cast_at IS NULL")
        ),
        Index(
            "ix_operations_open_kind",
            "kind",
            "ended_at",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index(
            "ix_operations_open",
            "claimed_until",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    resource_id: Mapped[str] = mapped_column(String(36), index=True)
    resource_name: Mapped[str] = mapped_column(String(64))
    gateway: Mapped[str | None] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16))
    turn: Mapped[int] = mapped_column(default=0, server_default="0")
    params: Mapped[dict[str, Any]]
    requested_by: Mapped[str] = mapped_column(String(64))
    traceparent: Mapped[str | None] = mapped_column(String(55))
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    claimed_by: Mapped[str | None] = mapped_column(String(128))
    claim_epoch: Mapped[int] = mapped_column(default=0)
    claimed_at: Mapped[datetime | None]
    claimed_until: Mapped[datetime | None]
    cast_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    problem: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    steps: Mapped[list["StepRow"]] = relationship(order_by="StepRow.position", cascade="all, delete-orphan", lazy="selectin")


class StepRow(Base):
    __tablename__ = "steps"

    operation_id: Mapped[str] = mapped_column(ForeignKey("operations.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    deadline_s: Mapped[float]
    attempts: Mapped[int] = mapped_column(default=0)
    started_at: Mapped[datetime | None]
    tried_at: Mapped[datetime | None]
    next_try_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    problem: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class MoveRow(Base):
    """One move of an operation that assigns paths."""

    __tablename__ = "moves"
    __table_args__ = (
        Index("ix_moves_gaps", "started_at", sqlite_where=text("gap_s IS NOT NULL"), postgresql_where=text("gap_s IS NOT NULL")),
    )

    operation_id: Mapped[str] = mapped_column(ForeignKey("operations.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    disk_id: Mapped[str] = mapped_column(String(36), index=True)
    disk_name: Mapped[str] = mapped_column(String(64))
    index: Mapped[int] = mapped_column(Integer)
    addresses: Mapped[list[str]]
    source: Mapped[str] = mapped_column(String(255))
    destination: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16))
    gap_s: Mapped[float | None] = mapped_column(Double)
    problem: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class PlanRow(Base):
    """A plan of moves that was shown, with what it was made from: it is applied only while that holds."""

    __tablename__ = "plans"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    request: Mapped[dict[str, Any]]
    layout: Mapped[dict[str, Any]]
    moves: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(index=True)


class MarkRow(Base):
    """A mark of an operator: `drain` (a gateway), `pin` or `avoid` (a disk and a gateway); `disk_id` is empty for a drain."""

    __tablename__ = "marks"

    kind: Mapped[str] = mapped_column(String(8), primary_key=True)
    gateway: Mapped[str] = mapped_column(String(255), primary_key=True)
    disk_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    set_by: Mapped[str] = mapped_column(String(64))
    set_at: Mapped[datetime]


class EventRow(Base):
    """One change of state: append-only, written in the transaction that made the change. `id` orders the history."""

    __tablename__ = "events"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(64), index=True)
    resource_id: Mapped[str | None] = mapped_column(String(64), index=True)
    operation_id: Mapped[str | None] = mapped_column(String(36), index=True)
    actor: Mapped[str] = mapped_column(String(128))
    data: Mapped[dict[str, Any]]
    source_id: Mapped[str | None] = mapped_column(String(64), unique=True)  # of a report: delivered twice, recorded once


class TermRow(Base):
    """The highest term in which a service's leader has written; one of a lower term writes nothing any more."""

    __tablename__ = "terms"

    service: Mapped[str] = mapped_column(String(64), primary_key=True)
    term: Mapped[int] = mapped_column(BigInteger)


class SampleRow(Base):
    """What was measured of one resource in the slot of time that begins at `at`; an average where `span_s` is coarse."""

    __tablename__ = "samples"
    __table_args__ = (Index("ix_samples_resource", "resource", "span_s", "at"),)

    span_s: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True)
    resource: Mapped[str] = mapped_column(String(300), primary_key=True)
    figures: Mapped[dict[str, Any]]


class RuleRow(Base):
    """A notification rule, and how far it has come. Every event up to `cursor` has been delivered, or is not its concern.

    `attempt_event` is the one that is being delivered, or whose delivery is in doubt: who died over it may have sent it.
    """

    __tablename__ = "notification_rules"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    kinds: Mapped[list[str]]
    sealed_url: Mapped[str] = mapped_column(Text)
    receiver: Mapped[str] = mapped_column(String(300))
    created_by: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    cursor: Mapped[int] = mapped_column(BigInteger)
    attempt_event: Mapped[int | None] = mapped_column(BigInteger)
    attempt_term: Mapped[int | None] = mapped_column(BigInteger)
    attempt_until: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(default=0)
    failing_since: Mapped[datetime | None]
    next_attempt_at: Mapped[datetime | None]
    last_error: Mapped[str | None] = mapped_column(Text)
    delivered: Mapped[int] = mapped_column(default=0)
    delivered_at: Mapped[datetime | None]
    given_up: Mapped[int] = mapped_column(default=0)


class IdempotencyRow(Base):
    """Which operation a key of a caller stands for, and the digest of the request it was first used with."""

    __tablename__ = "idempotency_keys"

    actor: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    operation_id: Mapped[str] = mapped_column(ForeignKey("operations.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]


class TokenRow(Base):
    """A bearer token's digest (SHA-256 of 256 random bits; a slow hash would add nothing), never the token."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    note: Mapped[str] = mapped_column(Text, default="")
