"""The connection to the records: short write transactions that are durable once they return, and reads beside them.

One transaction writes at a time, in all processes together, on SQLite by its nature and on PostgreSQL by a lock: no function of
the records has to think of another writer. The writers of a process queue up here, so that a burst of requests waits in line
instead of each holding a connection, or polling for a file's lock.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from sanderling import settings
from sanderling.clock import Clock
from sanderling.errors import OutOfSpace, SettingsRefused, Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"

_FULL: Final = "53100"
_WAITED: Final = "55P03"
_UNUSABLE: Final = {
    "25006",  # it only reads: a standby, perhaps
    "42501",  # the role may not do this
    "42P01",  # there is no schema yet
}
"""SQLSTATEs which are no operational errors to the driver, and yet no fault of a statement either."""


class Records:
    """One per process. Threads share it; a session belongs to the thread that opened it."""

    def __init__(self, options: settings.Records, *, clock: Clock) -> None:
        """`SettingsRefused` for a URL that cannot work. Whether the records can be reached shows when they are used."""
        self._clock = clock
        try:
            url = make_url(options.url)
        except (ArgumentError, ValueError):
            raise _refused("cannot be read") from None
        if url.drivername == "sqlite":
            from sanderling.records import sqlite as store  # noqa: PLC0415  a process loads the one it uses
        elif url.drivername == "postgresql+psycopg":
            try:
                from sanderling.records import postgresql as store  # type: ignore[no-redef]  # noqa: PLC0415
            except ImportError:
                raise SettingsRefused("[records] url: PostgreSQL needs its client library; install Debian's libpq5") from None
        else:
            raise _refused("names no database that is known here")
        engine = store.engine(options, url)
        self._reading, self._writing = engine.execution_options(**store.READING), engine.execution_options(**store.WRITING)
        self._turn = _Turn(options.busy_timeout_s)

    def now(self) -> datetime:
        """The moment that what is written now is stamped with."""
        return self._clock.wall()

    @contextlib.contextmanager
    def begin(self) -> Iterator[Session]:
        """A write transaction, the only one that runs: durable when the block ends, rolled back when it raises.

        `Unavailable` when the records cannot be reached or other writers keep them for longer than busy_timeout_s. If the
        connection ends while it is being committed, nobody can tell whether it was: what is repeated must bear that.
        """
        with _reached(), self._turn, Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """One consistent view; nothing done in it is kept. A writer does not hold it up."""
        with _reached(), Session(self._reading, expire_on_commit=False) as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema to what this release expects, in one transaction; processes that do so at once wait in line."""
        present, expected = self.schema()
        if present == expected:
            return
        from alembic import command  # noqa: PLC0415  most starts find nothing to do
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with _reached(), self._turn, self._writing.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def schema(self) -> tuple[str | None, str]:
        """The revision that the schema has, None if there is none, and the one that this release works with."""
        expected = max(script.name.partition("_")[0] for script in (MIGRATIONS / "versions").glob("[0-9]*.py"))
        with _reached(), self._reading.connect() as connection:
            known = inspect(connection).has_table("alembic_version")
            present = connection.scalar(text("SELECT version_num FROM alembic_version")) if known else None
        return present, expected

    def ping(self) -> None:
        """Return when the records answer; `Unavailable` when they do not."""
        with self.read() as session:
            session.execute(text("SELECT 1 FROM alembic_version"))

    def close(self) -> None:
        self._reading.dispose()


class _Turn:
    """The queue of this process's writers before the lock that they take of all processes."""

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
    except PoolTimeout as error:
        raise Unavailable("the records: every connection of this process is in use; try again", dependency="records") from error
    except DBAPIError as error:
        sqlstate = getattr(error.orig, "sqlstate", None)
        if sqlstate == _FULL or getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise OutOfSpace("the records' disk is full; make room on it", dependency="records") from error
        if sqlstate == _WAITED:
            raise Unavailable("the records: other writers kept them for too long; try again", dependency="records") from error
        if isinstance(error, OperationalError) or error.connection_invalidated or sqlstate in _UNUSABLE:
            raise Unavailable(f"the records cannot be used: {_cause(error)}", dependency="records") from error
        raise


def _cause(error: DBAPIError) -> str:
    """What the driver or the server said, in one line, without the statement and its values."""
    said = getattr(getattr(error.orig, "diag", None), "message_primary", None) or str(error.orig)
    return " ".join(said.split())


def _refused(why: str) -> SettingsRefused:
    return SettingsRefused(
        f"[records] url: {why}; write it as sqlite:////FOLDER/FILE or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, what is "
        "special in the password percent-encoded"
    )
