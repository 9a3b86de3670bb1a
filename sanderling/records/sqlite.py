"""SQLite under the records: any number of processes on one host (WAL), one of which writes at a time."""

from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event

from sanderling import settings

READING: Final[dict[str, Any]] = {}
WRITING: Final = {"writes": True}


def engine(options: settings.Records, url: URL) -> Engine:
    """Transactions of the execution option `writes` lock the file at their beginning."""
    made = create_engine(
        url,
        pool_size=options.pool_size,
        max_overflow=0,
        pool_timeout=options.busy_timeout_s,
        hide_parameters=True,  # an error that nobody foresaw is logged, and values are secrets too
        connect_args={"timeout": options.busy_timeout_s},
    )

    @event.listens_for(made, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin or commit on its own
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(made, "begin")
    def begin(connection: Connection) -> None:
        """Writers lock at once: a read that turns into a write would fail on a snapshot that is old, whatever the timeout."""
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return made
