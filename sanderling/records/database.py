"""The connection to the records: short write transactions that are durable once they return, and reads beside them.

SQLite serves any number of processes on one host (WAL); its single writer is queued for here, so that a burst of requests
waits in line instead of polling for the file's lock.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from sanderling import settings
from sanderling.clock import Clock
from sanderling.errors import OutOfSpace, Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"


class Records:
    """One per process. Threads share it; a session belongs to the thread that opened it."""

    def __init__(self, options: settings.Records, *, clock: Clock) -> None:
        self._clock = clock
        self._wait_s = options.busy_timeout_s
        self._engine = create_engine(
            options.url,
            pool_size=options.pool_size,
            max_overflow=0,
            pool_timeout=options.busy_timeout_s,
            connect_args={"timeout": options.busy_timeout_s} if options.url.startswith("sqlite") else {},
        )
        self._turn: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self._engine.dialect.name == "sqlite":
            _prepare_sqlite(self._engine)
            self._turn = _Turn(options.busy_timeout_s)
        self._writing = self._engine.execution_options(writes=True)

    def now(self) -> datetime:
        """The moment that what is written now is stamped with."""
        return self._clock.wall()

    @contextlib.contextmanager
    def begin(self) -> Iterator[Session]:
        """A write transaction: committed and durable when the block ends, rolled back when it raises.

        `Unavailable` when the records cannot be reached or other writers keep them for longer than busy_timeout_s.
        """
        with _reached(), self._turn, Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """One consistent view; nothing done in it is kept. A writer does not hold it up."""
        with _reached(), Session(self._engine, expire_on_commit=False) as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema to what this release expects, in one transaction; processes that do so at once wait in line."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with _reached(), self._turn, self._writing.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def schema(self) -> tuple[str | None, str]:
        """The revision that the schema has, None if there is none, and the one that this release works with."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with _reached(), self._engine.connect() as connection:
            present = MigrationContext.configure(connection).get_current_revision()
        return present, str(ScriptDirectory.from_config(config).get_current_head())

    def ping(self) -> None:
        """Return when the records answer; `Unavailable` when they do not."""
        with self.read() as session:
            session.execute(text("SELECT 1 FROM alembic_version"))

    def close(self) -> None:
        self._engine.dispose()


class _Turn:
    """The queue of this process's writers before SQLite's own lock."""

    def __init__(self, wait_s: float) -> None:
        self._lock, self._wait_s = threading.Lock(), wait_s

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=self._wait_s):
            raise Unavailable(f"the records: other writers kept them for {self._wait_s} s; try again", dependency="records")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except (OperationalError, PoolTimeout) as error:
        if getattr(error.orig if isinstance(error, OperationalError) else None, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise OutOfSpace("the records' disk is full; make room on it", dependency="records") from error
        raise Unavailable(f"the records cannot be used: {_cause(error)}", dependency="records") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise Unavailable(f"the records cannot be used: {_cause(error)}", dependency="records") from error


def _cause(error: Exception) -> str:
    """What the driver said, without the statement and its values."""
    return str(getattr(error, "orig", None) or error)


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin or commit on its own
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Writers lock at once: a read that turns into a write would fail on a snapshot that is old, whatever the timeout."""
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
