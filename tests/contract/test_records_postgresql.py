"""What PostgreSQL adds to the records' promises: a server that restarts, hangs or is full, and one that will not have us.

The server is this file's own, on a small file system of its own.
"""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from cli.lab.parts.daemons import run
from cli.lab.parts.postgresql import USER, PostgreSQL
from sanderling import settings
from sanderling.clock import SystemClock
from sanderling.errors import OutOfSpace, Unavailable
from sanderling.model.disks import Disk, DiskState
from sanderling.model.subnets import Subnet
from sanderling.records import assignments, disks, events, operations, subnets, tokens
from sanderling.records.database import Records
from tests.contract.conftest import Databases, migrate
from tests.contract.test_bus_rabbitmq import make_certificates
from tests.parts import usage
from tests.parts.small_disk import full, small_disk

CLOCK = SystemClock()
GUIDE = Path(__file__).parents[2] / "docs/operations.md"
AS_ITS_USER = "runuser -u sanderling -- env SANDERLING_CONFIG=/etc/sanderling/sanderling.conf "


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    folder = tmp_path_factory.mktemp("own-postgresql")
    with small_disk(folder):
        make_certificates(folder)
        shutil.chown(folder / "server.key", USER)
        (folder / "server.key").chmod(0o600)
        tls = {"ssl": "on", "ssl_cert_file": f"'{folder}/server.pem'", "ssl_key_file": f"'{folder}/server.key'"}
        server = PostgreSQL(folder, more=tls)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture
def server(_server: PostgreSQL) -> Iterator[PostgreSQL]:
    """One that the test may break; it runs again afterwards."""
    usage.used("PostgreSQL", _server.version)
    yield _server
    if _server.alive:
        _server.resume()
    else:
        _server.start()


Open = Callable[..., Records]


@pytest.fixture
def own(server: PostgreSQL) -> Iterator[Open]:
    """Opens a new database of that server, or with `url` one that is there, with some settings changed."""
    made, opened = Databases(server.url), list[Records]()

    def one(url: str = "", **changes: Any) -> Records:
        opened.append(Records(settings.Records(url=url or made.migrated(), **changes), clock=CLOCK))
        return opened[-1]

    yield one
    for records in opened:
        records.close()
    if not server.alive:
        server.start()
    server.resume()
    made.close()


def write(records: Records, kind: str) -> None:
    with records.begin() as session:
        events.append(session, kind, at=CLOCK.wall(), actor="test")


def write_many(records: Records, kind: str) -> None:
    for number in range(1000):
        write(records, f"{kind}.{number}")


def kinds(records: Records) -> list[str]:
    with records.read() as session:
        return [event.kind for event in events.page(session, after=0, limit=10_000)]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the database's own libraries logged; a bus that an earlier test left may log what it likes."""
    return [record.getMessage() for record in caplog.records if record.name.startswith(("sqlalchemy", "psycopg", "sanderling"))]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_server_that_restarts_is_away_and_then_there_again(
    server: PostgreSQL, own: Open, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    records = own()
    write(records, "before")
    getattr(server, end)()
    for use in (records.ping, lambda: write(records, "never")):
        with pytest.raises(Unavailable) as away:
            use()
        assert away.value.context == {"dependency": "records"}
        assert "\n" not in away.value.detail
    server.start()
    write(records, "after")
    assert kinds(records) == ["before", "after"]
    assert not said(caplog), "the pool had something to say"


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_no_connection_of_before_a_restart_is_met_again(server: PostgreSQL, own: Open, end: str) -> None:
    """Nobody used the records while it was away: the first who does afterwards need not find out."""
    records = own()
    write(records, "before")
    with records.read(), records.read() as session:
        assert events.newest(session) == 1
    getattr(server, end)()
    server.start()
    write(records, "after")
    assert kinds(records) == ["before", "after"]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_transaction_whose_server_ends_is_unavailable_and_leaves_nothing(
    server: PostgreSQL, own: Open, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    records = own()

    def interrupted() -> None:
        with records.begin() as session:
            events.append(session, "never", at=CLOCK.wall(), actor="test")
            session.flush()
            getattr(server, end)()

    def read_on() -> None:
        with records.read() as session:
            events.newest(session)
            getattr(server, end)()
            events.newest(session)

    for use in (interrupted, read_on):
        with pytest.raises(Unavailable) as away:
            use()
        assert "\n" not in away.value.detail
        server.start()
    assert kinds(records) == []
    assert not said(caplog)


def test_a_server_that_hangs_is_unavailable_within_the_bound(server: PostgreSQL, own: Open) -> None:
    records = own(statement_timeout_s=0.5, connect_timeout_s=2)
    write(records, "before")
    server.pause()
    for use in (records.ping, lambda: write(records, "never")):
        with pytest.raises(Unavailable):
            use()
    server.resume()
    write(records, "after")
    assert [kind for kind in kinds(records) if kind != "never"] == ["before", "after"]


def test_a_process_that_hangs_in_the_midst_of_a_write_loses_it_and_others_go_on(server: PostgreSQL, own: Open) -> None:
    url = Databases(server.url).migrated()
    hanging, others = own(url, idle_timeout_s=0.5), own(url)

    def hang() -> None:
        with hanging.begin() as session:
            events.append(session, "never", at=CLOCK.wall(), actor="test")
            session.flush()
            write(others, "others")

    with pytest.raises(Unavailable):
        hang()
    assert kinds(others) == ["others"]
    write(hanging, "later")
    assert kinds(others) == ["others", "later"]


def test_a_full_disk_is_said_to_be_full_and_what_waited_is_written_when_there_is_room(
    server: PostgreSQL, own: Open, tmp_path: Path
) -> None:
    records = own()
    write(records, "before")
    with full(server.folder):
        with pytest.raises(OutOfSpace, match="make room"):
            write_many(records, "while.full")  # what is allocated already holds some of them
        written = kinds(records)
        assert written == ["before", *(f"while.full.{number}" for number in range(len(written) - 1))]
        with pytest.raises(OutOfSpace):
            write(records, "x" * 60)
    write(records, "after")
    assert kinds(records) == [*written, "after"]


def test_a_server_that_has_no_room_for_its_log_ends_and_nothing_that_was_said_to_be_written_is_lost(
    server: PostgreSQL, own: Open
) -> None:
    records, written = own(), list[str]()

    def write_on() -> None:
        for number in range(100):
            write(records, f"while.full.{number}")
            written.append(f"while.full.{number}")
            Databases(server.url).execute("SELECT pg_switch_wal()")

    with full(server.folder):
        with pytest.raises((Unavailable, psycopg.OperationalError)):
            write_on()
        with pytest.raises(Unavailable):
            write(records, "never")
    server.stop()
    server.start()
    assert [kind for kind in kinds(records) if kind != "never"][: len(written)] == written
    write(records, "after")


def test_a_commit_waits_for_the_disk_whatever_the_server_would_do(server: PostgreSQL, own: Open) -> None:
    made = Databases(server.url)
    url = made.migrated()
    made.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = off")
    with own(url).begin() as session:
        assert session.scalar(text("SHOW synchronous_commit")) == "on"


@pytest.fixture
def role(server: PostgreSQL, unique: str) -> Iterator[str]:
    """A role with the password "canary" and a database of its own that has its name."""
    made = Databases(server.url)
    made.execute(f"CREATE ROLE {unique} LOGIN PASSWORD 'canary'")
    made.execute(f"CREATE DATABASE {unique} OWNER {unique} TEMPLATE template0")
    yield unique
    made.execute(f"DROP DATABASE IF EXISTS {unique} WITH (FORCE)")
    made.execute(f"DROP ROLE {unique}")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("ALTER ROLE {role} PASSWORD 'other'", "password authentication failed"),
        ("ALTER ROLE {role} CONNECTION LIMIT 0", "too many connections for role"),
        ("DROP DATABASE {role} WITH (FORCE)", "does not exist"),
        ("ALTER DATABASE {role} SET default_transaction_read_only = on", "read-only transaction"),
        ("ALTER DATABASE {role} OWNER TO postgres", "permission denied for schema public"),
    ],
)
def test_records_that_will_not_have_us_are_unavailable_and_the_password_stays_unsaid(
    server: PostgreSQL, own: Open, role: str, fault: str, said: str
) -> None:
    made = Databases(server.url)
    made.execute(fault.format(role=role))
    records = own(f"postgresql+psycopg://{role}:canary@{made.at}/{role}")

    def begun() -> None:
        records.migrate()
        with records.begin() as session:
            session.execute(text("DELETE FROM terms"))

    with pytest.raises(Unavailable, match=said) as refused:
        begun()
    assert "canary" not in refused.value.detail
    assert "\n" not in refused.value.detail


def test_with_verify_full_it_is_the_server_that_its_certificate_says(server: PostgreSQL, own: Open) -> None:
    url = f"{Databases(server.url).migrated()}?sslmode=verify-full&sslrootcert={server.folder}"
    with own(f"{url}/ca.pem").read() as session:
        assert session.scalar(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
    with pytest.raises(Unavailable, match="certificate verify failed"):
        own(f"{url}/other-ca.pem").ping()


class Guide:
    """The guide's commands about PostgreSQL, carried out here: with this server for its host and this folder for its files."""

    def __init__(self, server: PostgreSQL, folder: Path, database: str) -> None:
        self._at, _, self._port = Databases(server.url).at.rpartition(":")
        self._user, self._database, self._folder, self._tls = "postgres", database, folder, server.folder
        (folder / "pgpass").write_text(f"*:*:*:*:{Databases(server.url).password}\n")
        (folder / "pgpass").chmod(0o600)
        (folder / "sanderling.conf").write_text(f"[records]\nurl = {server.database_url(database)}\n")

    def type(self, has: str) -> str:
        """The one shell block that has this in it."""
        (block,) = [block for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL) if has in block]
        here = {
            AS_ITS_USER: "",
            "/etc/sanderling/tls/ca.crt": f"{self._tls}/ca.pem",
            "/etc/sanderling/": f"{self._folder}/",
            "db.example": self._at,
            "--username=sanderling sanderling": f"--username=postgres {self._database}",
            "--username=sanderling --dbname=sanderling": f"--username=postgres --dbname={self._database}",
            "/opt/sanderling/.venv/bin/python": sys.executable,
            "/var/lib/sanderling/": f"{self._folder}/",
            "records.dump": f"{self._folder}/records.dump",
        }
        for said, meant in here.items():
            block = block.replace(said, meant)
        environment = {
            "PGPORT": self._port,
            "SANDERLING_CONFIG": f"{self._folder}/sanderling.conf",
            "PYTHONPATH": str(Path.cwd()),
        }
        return run(["bash", "-euc", block], env=environment)


def test_records_are_backed_up_and_restored_as_the_guide_says(server: PostgreSQL, own: Open, tmp_path: Path, unique: str) -> None:
    url = Databases(server.url).migrated()
    guide, records = Guide(server, tmp_path, url.rpartition("/")[2]), own(url)
    write(records, "before")
    guide.type("pg_dump")
    write(records, "after")
    records.close()
    guide.type("pg_restore")
    assert kinds(records) == ["before"]
    write(records, "again")
    assert kinds(records) == ["before", "again"]


def test_records_move_from_a_file_as_the_guide_says(server: PostgreSQL, own: Open, tmp_path: Path) -> None:
    migrate(old := f"sqlite:///{tmp_path}/records.sqlite")
    before = own(old)
    with before.begin() as session:
        subnet = Subnet(name="s", cidr="10.1.0.0/24", interface="eth1", pool_first="10.1.0.1", pool_last="10.1.0.9")
        subnets.insert(session, subnet, now=CLOCK.wall(), actor="test")
        _, secret = tokens.create(session, name="t", role=tokens.Role.ADMIN, now=CLOCK.wall(), actor="test")
        disk = Disk(id="d", name="d", iqn="iqn.2026-11.test:d", size_bytes=512, paths=subnets.allocate(session, 2))
        disks.insert(session, disk, now=CLOCK.wall(), state=DiskState.STOPPED)
        asked = assignments.submit(session, conductor=settings.Conductor(), requested_by="t", now=CLOCK.wall())
    made = Databases(server.url)
    url = made.empty()
    Guide(server, tmp_path, url.rpartition("/")[2]).type(f"{AS_ITS_USER}/opt/sanderling/.venv/bin/python")
    after = own(url)
    assert kinds(after) == kinds(before)
    with before.read() as old_session, after.read() as session:
        assert disks.describe(disks.by_name(session, "d")) == disk
        assert operations.get(session, asked.id) == operations.get(old_session, asked.id)
        assert tokens.authenticate(session, secret, now=CLOCK.wall()) is not None
    write(after, "later")
    assert kinds(after) == [*kinds(before), "later"]


def test_a_machine_without_the_client_library_is_told_what_to_install() -> None:
    program = (
        "from sanderling import settings; from sanderling.clock import SystemClock\n"
        "from sanderling.records.database import Records\n"
        "Records(settings.Records(url='postgresql+psycopg://u:canary@h/d'), clock=SystemClock())"
    )
    with pytest.raises(AssertionError, match="install Debian's libpq5") as refused:
        run(
            [sys.executable, "-c", program], env={"PSYCOPG_IMPL": "binary", "PYTHONPATH": str(Path.cwd())}
        )  # one that is not there
    assert "canary" not in str(refused.value).partition("Traceback")[2]


def test_the_password_may_be_in_a_file_of_its_own(server: PostgreSQL, own: Open, tmp_path: Path) -> None:
    known = Databases(server.url)
    file = tmp_path / "pgpass"
    file.write_text(f"*:*:*:postgres:{known.password}\n")
    file.chmod(0o600)
    own(f"postgresql+psycopg://postgres@{known.at}/postgres?passfile={file}").migrate()
    with pytest.raises(Unavailable, match="no password supplied"):
        own(f"postgresql+psycopg://postgres@{known.at}/postgres?passfile=/none").ping()
    known.execute("DROP SCHEMA public CASCADE")
    known.execute("CREATE SCHEMA public")
