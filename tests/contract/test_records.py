"""What the records promise: transactions that are whole and durable, writers in line across processes, readers beside them.

Runs on every database; this file is the definition.
"""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from cli.lab.parts.daemons import run, spawn, waited
from sanderling import settings
from sanderling.clock import SystemClock
from sanderling.errors import OutOfSpace, SettingsRefused, Unavailable
from sanderling.model.subnets import Subnet
from sanderling.records import events, subnets
from sanderling.records.database import MIGRATIONS, Records
from sanderling.records.tables import Base, PathRow, TokenRow

CLOCK = SystemClock()
WRITER = """
import sys
from sanderling import settings
from sanderling.clock import SystemClock
from sanderling.records import events
from sanderling.records.database import Records

url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
records = Records(settings.Records(url=url), clock=SystemClock())
records.migrate()
for number in range(count):
    with records.begin() as session:
        before = events.newest(session)
        events.append(session, f"{name}.{number}", at=records.now(), actor=name, data={"before": before})
    print(number, flush=True)
"""


@pytest.fixture
def records(url: str) -> Iterator[Records]:
    opened = Records(settings.Records(url=url, busy_timeout_s=0.3), clock=CLOCK)
    yield opened
    opened.close()


@pytest.fixture
def others(url: str) -> Iterator[Records]:
    """The same records as another process has them open."""
    opened = Records(settings.Records(url=url, busy_timeout_s=0.3), clock=CLOCK)
    yield opened
    opened.close()


def append(session: Session, kind: str) -> None:
    events.append(session, kind, at=CLOCK.wall(), actor="test")


def kinds(records: Records) -> list[str]:
    with records.read() as session:
        return [event.kind for event in events.page(session, after=0, limit=10_000)]


def test_the_migrations_make_exactly_the_tables_of_the_code(records: Records, url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        found = inspect(connection)
        made = {index["name"] for table in found.get_table_names() for index in found.get_indexes(table)}
    engine.dispose()
    wanted = {str(index.name) for table in Base.metadata.sorted_tables for index in table.indexes}
    assert wanted <= made
    records.migrate()


def test_records_of_before_are_brought_up_to_date_with_what_is_under_way(empty: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(empty)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for kind in ("gateway.drain", "gateway.undrain"):
            connection.execute(
                text(
                    "INSERT INTO operations (id, kind, resource_id, resource_name, state, params, requested_by, claim_epoch, "
                    "created_at, cancel_requested) VALUES (:kind, :kind, :kind, 'x', 'x', :params, 'x', 1, '2026-01-01', FALSE)"
                ),
                {"kind": kind, "params": '{"gateway": "san1"}'},
            )
    records = Records(settings.Records(url=empty), clock=CLOCK)
    records.migrate()
    records.close()
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        rows = connection.execute(text("SELECT kind, gateway FROM operations"))
        assert {row.kind: row.gateway for row in rows} == {
            "gateway.drain": "san1",
            "gateway.undrain": None,
        }
    engine.dispose()


def test_processes_that_migrate_at_once_make_the_schema_once(tmp_path: Path, empty: str) -> None:
    env = {"PYTHONPATH": str(Path.cwd())}
    started = [
        spawn(f"writer {n}", [sys.executable, "-c", WRITER, empty, f"w{n}", "5"], log=tmp_path / f"{n}.log", env=env)
        for n in range(4)
    ]
    try:
        for process in started:
            process.wait(within_s=60)
    finally:
        for process in started:
            process.kill()
    opened = Records(settings.Records(url=empty), clock=CLOCK)
    assert len(kinds(opened)) == 20, [path.read_text() for path in tmp_path.glob("*.log")]
    opened.close()


def test_a_transaction_that_raises_leaves_nothing(records: Records) -> None:
    def fail() -> None:
        with records.begin() as session:
            append(session, "a.b")
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert kinds(records) == []
    with records.begin() as session:
        append(session, "c.d")
    assert kinds(records) == ["c.d"]


def test_a_reader_is_not_held_up_by_a_writer_and_sees_nothing_unfinished(records: Records) -> None:
    with records.begin() as session:
        append(session, "a.b")
        session.flush()
        assert kinds(records) == []
    assert kinds(records) == ["a.b"]


def test_writers_of_one_process_wait_for_each_other_within_the_bound(records: Records) -> None:
    with records.begin(), ThreadPoolExecutor(1) as pool, pytest.raises(Unavailable, match="records"):
        pool.submit(lambda: records.begin().__enter__()).result()
    with records.begin() as session:
        append(session, "a.b")


def test_a_writer_of_another_process_is_waited_for_within_the_bound(records: Records, others: Records) -> None:
    with others.begin() as other:
        append(other, "other")
        other.flush()
        with pytest.raises(Unavailable, match=r"locked|other writers"), records.begin() as session:
            append(session, "a.b")
    with records.begin() as session:
        append(session, "c.d")
    assert kinds(records) == ["other", "c.d"]


def test_a_reader_that_goes_on_after_the_last_event_it_saw_misses_none(records: Records, others: Records) -> None:
    """Its place is an id: one that becomes visible after a higher one would be passed over for ever."""
    with records.begin() as session:
        append(session, "begun.first")
        session.flush()
        with contextlib.suppress(Unavailable), others.begin() as other:
            append(other, "begun.second")
        with others.read() as reader:
            seen = events.page(reader, after=0, limit=9)
    with others.read() as reader:
        seen += events.page(reader, after=seen[-1].id if seen else 0, limit=9)
    assert [event.kind for event in seen] == kinds(records)


def test_what_a_writer_read_holds_until_it_has_written(records: Records, others: Records) -> None:
    """No function of the records looks for what another writer may do meanwhile: two subnets that overlap, for one."""
    one, two = (
        Subnet(name=name, cidr=cidr, interface="eth1", pool_first="10.0.0.1", pool_last="10.0.0.9")
        for name, cidr in (("one", "10.0.0.0/24"), ("two", "10.0.0.0/16"))
    )
    with records.begin() as session:
        subnets.insert(session, one, now=CLOCK.wall(), actor="test")
        with contextlib.suppress(Unavailable), others.begin() as other:
            subnets.insert(other, two, now=CLOCK.wall(), actor="test")
    with records.read() as session:
        assert subnets.page(session, limit=9) == [one]


def test_a_reader_has_one_view_however_long_it_reads(records: Records, others: Records) -> None:
    with records.read() as session:
        assert events.newest(session) == 0
        with others.begin() as other:
            append(other, "a.b")
        assert events.page(session, after=0, limit=9) == []


def test_two_processes_and_twenty_threads_write_and_nothing_is_lost_or_seen_twice(tmp_path: Path, url: str) -> None:
    opened = Records(settings.Records(url=url), clock=CLOCK)
    log = tmp_path / "other.log"
    other = spawn("other", [sys.executable, "-c", WRITER, url, "other", "60"], log=log, env={"PYTHONPATH": str(Path.cwd())})
    try:
        waited(lambda: "0" in log.read_text(), within_s=30, what="the other process writes")

        def write(thread: int) -> None:
            for number in range(5):
                with opened.begin() as session:
                    before = events.newest(session)
                    events.append(session, f"t{thread}.{number}", at=CLOCK.wall(), actor="t", data={"before": before})

        with ThreadPoolExecutor(20) as pool:
            list(pool.map(write, range(20)))
        other.wait(within_s=60)
    finally:
        other.kill()
    with opened.read() as session:
        found = events.page(session, after=0, limit=1000)
    assert len({event.kind for event in found}) == len(found) == 160, log.read_text()
    assert [event.data["before"] for event in found] == [0, *(event.id for event in found[:-1])]
    opened.close()


def test_what_was_committed_outlives_a_process_that_is_killed(tmp_path: Path, url: str) -> None:
    log = tmp_path / "writer.log"
    writer = spawn("writer", [sys.executable, "-c", WRITER, url, "w", "100000"], log=log, env={"PYTHONPATH": str(Path.cwd())})
    try:
        waited(lambda: log.read_text().count("\n") > 20, within_s=30, what="the writer writes")
    finally:
        writer.kill()
    opened = Records(settings.Records(url=url), clock=CLOCK)
    acknowledged = log.read_text().splitlines()[:-1]
    assert len(kinds(opened)) >= len(acknowledged) > 10
    opened.close()


def test_a_commit_to_a_file_waits_for_the_disk(tmp_path: Path) -> None:
    """For PostgreSQL test_records_postgresql.py says the same."""
    records = Records(settings.Records(url=f"sqlite:///{tmp_path}/records.sqlite"), clock=CLOCK)
    with records.begin() as session:
        assert session.scalar(text("PRAGMA synchronous")) == 2  # FULL
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
    records.close()


def test_a_reference_to_what_is_not_there_is_refused(records: Records) -> None:
    with pytest.raises(IntegrityError), records.begin() as session:
        session.add(PathRow(disk_id="none", index=1, address="10.0.0.1", prefix_len=24, interface="eth1", subnet="none"))


def test_what_the_database_refuses_is_told_without_the_values(records: Records) -> None:
    """It is logged with its traceback, and tokens' digests and sealed secrets are values too."""

    def row(number: str, role: str | None = "reader") -> TokenRow:
        return TokenRow(id=number, name=number, digest="canary", role=role, created_at=CLOCK.wall())

    for rows in ([row("1"), row("2")], [row("3", role=None)]):  # a digest that is there already; a column that may not be empty
        with pytest.raises(IntegrityError) as caught, records.begin() as session:
            session.add_all(rows)
        assert "canary" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "where", ["sqlite:////none/records.sqlite", "postgresql+psycopg://sanderling:canary@127.0.0.1:1/sanderling"]
)
def test_records_that_cannot_be_opened_are_unavailable(where: str) -> None:
    opened = Records(settings.Records(url=where), clock=CLOCK)
    with pytest.raises(Unavailable) as caught:
        opened.ping()
    assert caught.value.context == {"dependency": "records"}
    assert "canary" not in caught.value.detail
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("nonsense", "cannot be read"),
        ("postgresql+psycopg://sanderling:can@ry:canary@h/sanderling:x", "cannot be read|special in the password"),
        ("postgresql+psycopg://sanderling:canary@h:port/sanderling", "cannot be read"),
        ("mysql://sanderling:canary@h/sanderling", "no database that is known here"),
        ("postgresql+psycopg://sanderling:canary@h/sanderling?sslmod=require", 'invalid connection option "sslmod"'),
        ("postgresql+psycopg://sanderling:canary@h/sanderling?sslmode=require", "does not verify who answers"),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_being_shown(where: str, why: str) -> None:
    with pytest.raises(SettingsRefused, match=why) as refused:
        Records(settings.Records(url=where), clock=CLOCK)
    assert "canary" not in refused.value.detail


def test_records_without_room_say_so_and_go_on_when_there_is_some(tmp_path: Path) -> None:
    """On SQLite; on PostgreSQL it takes a disk of its own (test_records_postgresql.py)."""
    records = Records(settings.Records(url=f"sqlite:///{tmp_path}/records.sqlite"), clock=CLOCK)
    records.migrate()
    with records.begin() as session:
        pages = session.scalar(text("PRAGMA page_count"))
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(OutOfSpace), records.begin() as session:  # noqa: PT012  whichever of them finds no room
        for _ in range(200):
            append(session, "x" * 60)
        session.flush()
    with records.begin() as session:
        session.execute(text("PRAGMA max_page_count = 1000000"))
        append(session, "room.again")
    assert kinds(records) == ["room.again"]
    records.close()


def test_records_without_a_schema_are_not_ready(empty: str) -> None:
    opened = Records(settings.Records(url=empty), clock=CLOCK)
    with pytest.raises(Unavailable):
        opened.ping()
    opened.migrate()
    opened.ping()
    opened.close()


def test_the_migrations_are_part_of_what_is_installed() -> None:
    listed = run(
        [sys.executable, "-c", "import sanderling.records.migrations as m; print(m.__path__[0])"], env={"PYTHONPATH": "."}
    )
    assert (Path(listed.strip()) / "versions" / "0001_first_schema.py").exists()


def test_the_schema_that_migrating_made_is_the_one_that_this_release_expects(records: Records) -> None:
    present, expected = records.schema()
    assert present == expected
