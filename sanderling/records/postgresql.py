"""PostgreSQL under the records: any number of processes on any number of hosts, one of which writes at a time.

Writers take an advisory lock at their beginning (docs/decisions/0012-postgresql.md): what they read stays so until they commit,
and the ids of events become visible in their order, so that who reads on after the last id misses none.
"""

from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import Dialect

from sanderling import settings
from sanderling.errors import SettingsRefused

WRITERS: Final = 0x5A4DE211  # the lock's key; it is the database's own, so that two of them do not wait for each other
READING: Final = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
WRITING: Final = {"isolation_level": "READ COMMITTED", "writes": True}
"""A writer's statements each see what has been committed: also what was while it waited in line, which a snapshot would not."""


def engine(options: settings.Records, url: URL) -> Engine:
    """Transactions of the execution option `writes` wait in line at their beginning.

    No wait on the server outlives statement_timeout_s, whatever has become of it. `SettingsRefused` for a URL that cannot work.
    """
    try:
        make_conninfo("", **dict.fromkeys(url.query, ""))
    except psycopg.ProgrammingError as error:
        raise SettingsRefused(f"[records] url: {str(error).strip()}; leave it out, or check its spelling") from None
    if url.query.get("sslmode", "disable") not in {"disable", "verify-full"}:
        raise SettingsRefused(
            "[records] url: this sslmode does not verify who answers; use sslmode=verify-full and sslrootcert=FILE"
        )
    made = create_engine(
        url,
        pool_size=options.pool_size,
        max_overflow=0,
        pool_timeout=options.busy_timeout_s,
        hide_parameters=True,  # an error that nobody foresaw is logged, and values are secrets too
        pool_pre_ping=True,  # after a restart of the server nobody meets a connection that died with it
        connect_args={
            "connect_timeout": options.connect_timeout_s,
            "application_name": "sanderling",
            "options": f"{url.query.get('options', '')} {_session(options)}".strip(),
        },
    )

    @event.listens_for(made, "do_connect")
    def connect(_dialect: Dialect, _record: object, arguments: list[Any], parameters: dict[str, Any]) -> psycopg.Connection[Any]:
        connection = _Bounded.connect(*arguments, **parameters)
        connection.answer_within_s = options.statement_timeout_s
        return connection

    @event.listens_for(made, "checkin")
    def as_the_database_says(connection: psycopg.Connection[Any] | None, _record: object) -> None:
        """What has been read with would override a database that its administrator lets be read only."""
        if connection is not None and not connection.closed:
            connection.read_only = None

    @event.listens_for(made, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("writes", False):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")

    return made


class _Bounded(psycopg.Connection[Any]):
    """A connection that gives up on a server which says nothing, and passes on none of the values that one shows.

    The server's own timeouts do not help when it hangs.
    """

    answer_within_s: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.answer_within_s if timeout is None else timeout)
        except psycopg.Error as error:
            if error.sqlstate is None and isinstance(error, psycopg.OperationalError):
                self.close()  # not the server's word: nobody knows what it is doing for us
            if error.diag.message_primary:
                error.args = (error.diag.message_primary,)  # the rest shows the row that it refuses
            raise


def _session(options: settings.Records) -> str:
    wanted = {
        "statement_timeout": options.statement_timeout_s,
        "lock_timeout": options.busy_timeout_s,
        "idle_in_transaction_session_timeout": options.idle_timeout_s,
    }
    return " ".join([*(f"-c {name}={round(seconds * 1000)}" for name, seconds in wanted.items()), "-c synchronous_commit=on"])
