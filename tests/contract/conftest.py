"""The databases that the records' contracts run on: SQLite, a file each, and copies of a template on a real PostgreSQL."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from sanderling.clock import SystemClock
from sanderling.records.database import Records
from sanderling.settings import Records as RecordsSettings

DATABASES = ("sqlite", "postgresql")


class Databases:
    """Databases on a server of which the tests know the superuser's URL. Each is dropped at the end of its test."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._made: list[str] = []
        self._template: str | None = None

    @property
    def at(self) -> str:
        """HOST:PORT"""
        return f"{self._url.host}:{self._url.port}"

    @property
    def password(self) -> str:
        return str(self._url.password)

    def empty(self, *, like: str = "template0") -> str:
        """The URL of a new one."""
        name = f"t{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {like}")
        self._made.append(name)
        return self._url.set(database=name).render_as_string(hide_password=False)

    def migrated(self) -> str:
        """The URL of a new one with the present schema."""
        if self._template is None:
            url = self.empty()
            migrate(url)
            self._template = self._made.pop()
        return self.empty(like=self._template)

    def execute(self, statement: str, *, database: str = "postgres") -> None:
        """As the superuser, outside of a transaction."""
        libpq = self._url.set(drivername="postgresql", database=database).render_as_string(hide_password=False)
        with psycopg.connect(libpq, autocommit=True) as connection:
            connection.execute(statement.encode())

    def drop(self) -> None:
        """All but the template."""
        while self._made:
            self.execute(f"DROP DATABASE {self._made.pop()} WITH (FORCE)")

    def close(self) -> None:
        self.drop()
        if self._template is not None:
            self.execute(f"DROP DATABASE {self._template} WITH (FORCE)")


def migrate(url: str) -> None:
    records = Records(RecordsSettings(url=url), clock=SystemClock())
    records.migrate()
    records.close()


@pytest.fixture(scope="session")
def _databases(postgresql: Any) -> Iterator[Databases]:
    made = Databases(postgresql.url)
    yield made
    made.close()


@pytest.fixture
def databases(_databases: Databases) -> Iterator[Databases]:
    """Databases of this test on the session's PostgreSQL."""
    yield _databases
    _databases.drop()


@pytest.fixture(params=DATABASES)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that has no schema yet, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/records.sqlite"
    made: Databases = request.getfixturevalue("databases")
    return made.empty()


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with the present schema and nothing in it, of each kind."""
    if request.param == "sqlite":
        migrate(file := f"sqlite:///{tmp_path}/records.sqlite")
        return file
    made: Databases = request.getfixturevalue("databases")
    return made.migrated()
