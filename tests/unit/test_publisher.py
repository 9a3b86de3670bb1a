"""Mending coordination from what the images say: published again after a loss, cleared of what nobody needs."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from cli.lab.parts.daemons import start_time
from conductor.publisher import Publisher
from sanderling.coordination.base import Put
from sanderling.coordination.changes import Changes
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.errors import Unavailable
from sanderling.model.disks import Disk, DiskState
from sanderling.model.exports import Export, ExportId, ExportPhase, Gateway
from sanderling.model.operations import Cause, OperationKind
from sanderling.records import disks
from sanderling.settings import Settings
from tests.house import Gateways, House

CREATE, STOP, DELETE = OperationKind.CREATE_DISK, OperationKind.STOP_DISK, OperationKind.DELETE_DISK
PID_1 = "pid:1:1"  # a client whose process is long gone: the start time is not init's


@pytest.fixture
def disk(house: House) -> Disk:
    """Created and started, by gateways that are then gone without a trace."""
    made, gateways = house.disk(), Gateways(house.coordination)
    gateways.start()
    house.done(CREATE, made)
    gateways.stop()
    house.another_conductor()
    return made


def publisher(house: House) -> Publisher:
    return Publisher(Settings(), house.stores, tell=lambda: None)


class Mute(EmbeddedCoordination):
    """A store that does what it is asked to and fails to say so, but for journals."""

    is_mute = False

    def put(self, key: str, value: bytes, *, expected: int | None = None) -> bool:
        done = super().put(key, value, expected=expected)
        if self.is_mute and not key.startswith("changes/"):
            raise Unavailable("no answer", dependency="consul")
        return done


def journal(house: House) -> bytes:
    entry = house.coordination.get(house.stores.journal.key)
    assert entry is not None
    return entry.value


def lose_coordination(house: House) -> None:
    house.use(EmbeddedCoordination(clock=house.stores.clock))


def own_client() -> str:
    """A client that lives and was never fenced: this process."""
    return f"pid:{os.getpid()}:{start_time(os.getpid())}"


def serve(house: House, gateway: str, export: ExportId, client: str) -> None:
    """A live gateway says that it serves the export with that client."""
    value = Gateway(name=gateway, running={str(export): client})
    session = house.coordination.open_session(gateway, check_ttl_s=3600)
    assert house.coordination.acquire(value.key, value.model_dump_json().encode(), consul_session=session)


def export(house: House, disk: Disk) -> Export:
    entry = house.coordination.get(f"exports/{disk.id}/0")
    assert entry is not None
    return Export.model_validate_json(entry.value)


def test_what_is_as_it_should_be_is_left_alone(house: House, disk: Disk) -> None:
    before = house.coordination.list("").entries
    publisher(house).turn()
    after = house.coordination.list("").entries
    assert [entry for entry in after if entry.key != house.stores.journal.key] == list(before)
    assert not house.noted


def test_workers_are_told_of_what_was_published_without_an_answer(house: House, disk: Disk) -> None:
    store = Mute(clock=house.stores.clock)
    for entry in house.coordination.list("").entries:
        store.put(entry.key, entry.value)
    house.use(store)
    mending = publisher(house)
    mending.turn()
    assert store.delete(f"disks/{disk.id}")
    store.is_mute = True
    mending.turn()
    store.is_mute = False
    assert house.keys(disk) == [f"disks/{disk.id}", f"exports/{disk.id}/0"]
    assert not house.noted
    mending.turn()
    assert f"disks/{disk.id}" in house.noted


def test_a_conductor_that_begins_has_workers_look_for_what_it_may_have_told_nobody(house: House, disk: Disk) -> None:
    publisher(house).turn()
    before = Changes.model_validate_json(journal(house))
    house.another_conductor(house.stores.journal.key.rpartition("/")[2])
    publisher(house).turn()
    assert Changes.model_validate_json(journal(house)).after(before) is None


def test_of_what_is_published_again_workers_hear_who_says_that_he_serves_it(house: House, disk: Disk) -> None:
    lose_coordination(house)
    serve(house, "g1", ExportId(disk.id, 0), own_client())
    publisher(house).turn()
    assert "nodes/g1" in house.noted


def test_a_description_that_is_missing_is_published_again_in_the_same_generation(house: House, disk: Disk) -> None:
    before = house.described(disk)
    assert house.coordination.delete(f"disks/{disk.id}")
    publisher(house).turn()
    entry = house.coordination.get(f"disks/{disk.id}")
    assert entry is not None
    assert Disk.model_validate_json(entry.value) == before == house.described(disk)
    assert entry.key in house.noted


def test_lost_exports_come_back_in_a_new_generation_naming_the_client_that_serves(house: House, disk: Disk) -> None:
    before = house.described(disk)
    assert before is not None
    lose_coordination(house)
    client = own_client()
    serve(house, "g1", ExportId(disk.id, 0), client)
    publisher(house).turn()
    assert house.keys(disk) == [f"disks/{disk.id}", f"exports/{disk.id}/0"]
    assert set(house.keys(disk)) <= house.noted
    assert export(house, disk).client == client
    assert export(house, disk).generation == before.generation + 1
    described = house.described(disk)
    assert described is not None
    assert described.generation == before.generation + 1
    with house.records.read() as session:
        assert disks.get(session, disk.id).generation == before.generation + 1


def test_gateways_have_a_turns_time_to_say_what_they_serve(house: House, disk: Disk) -> None:
    lose_coordination(house)
    patient = publisher(house)
    patient.turn()
    assert house.keys(disk) == []
    patient.turn()
    assert export(house, disk).client == "unknown"


@pytest.mark.rows("IS-2")
def test_two_gateways_that_both_claim_an_export_are_not_believed(house: House, disk: Disk) -> None:
    lose_coordination(house)
    for gateway in ("g1", "g2"):
        serve(house, gateway, ExportId(disk.id, 0), f"client-{gateway}")
    patient = publisher(house)
    patient.turn()
    patient.turn()
    assert export(house, disk).client == "unknown"


@pytest.mark.rows("IS-2")
def test_a_client_that_was_fenced_serves_no_more_whatever_its_gateway_says(house: House, disk: Disk) -> None:
    lose_coordination(house)
    serve(house, "g1", ExportId(disk.id, 0), PID_1)
    patient = publisher(house)
    patient.turn()
    patient.turn()
    assert export(house, disk).client == "unknown"


def test_a_disk_with_an_open_operation_is_left_to_it(house: House, disk: Disk) -> None:
    lose_coordination(house)
    house.ask(STOP, disk)
    patient = publisher(house)
    patient.turn()
    patient.turn()
    assert house.keys(disk) == []


@pytest.mark.parametrize("kind", [STOP, DELETE])
def test_what_a_late_writer_left_of_a_disk_that_is_stopped_or_gone_is_cleared_away(
    house: House, disk: Disk, kind: OperationKind
) -> None:
    published = house.coordination.get(f"disks/{disk.id}")
    assert published is not None
    lose_coordination(house)
    house.done(kind, disk)
    left = Export(generation=1, counter=3, node="g1", client=PID_1, phase=ExportPhase.SERVING)
    assert house.coordination.txn(
        [Put(f"disks/{disk.id}", published.value), Put(f"exports/{disk.id}/0", left.model_dump_json().encode())]
    )
    janitor = publisher(house)
    janitor.turn()  # fences
    house.another_conductor()
    publisher(house).turn()
    assert house.keys(disk) == []
    assert house.noted == {f"disks/{disk.id}", f"exports/{disk.id}/0"}
    assert house.state(disk) == (DiskState.STOPPED if kind is STOP else None)


@pytest.mark.parametrize("published", [True, False])
def test_a_worker_that_holds_an_export_of_a_stopped_disk_is_told_to_stop_and_waited_for(
    house: House, disk: Disk, published: bool
) -> None:
    stale = house.coordination.get(f"disks/{disk.id}")
    assert stale is not None
    lose_coordination(house)
    house.done(STOP, disk)
    if published:
        assert house.coordination.put(f"disks/{disk.id}", stale.value)
    session, key, value = hold(house, disk)
    house.another_conductor()
    janitor = publisher(house)
    janitor.turn()
    assert told(house, disk) == house.described(disk)
    janitor.turn()
    assert house.keys(disk) == [f"disks/{disk.id}", f"exports/{disk.id}/0"]
    left = value.model_copy(update={"client": "", "phase": ExportPhase.LEFT})
    assert house.coordination.release(key, left.model_dump_json().encode(), consul_session=session)
    janitor.turn()
    assert house.keys(disk) == []


def test_a_worker_that_holds_an_export_of_a_disk_that_is_gone_is_told_to_stop(house: House, disk: Disk) -> None:
    stale = house.coordination.get(f"disks/{disk.id}")
    assert stale is not None
    lose_coordination(house)
    house.done(DELETE, disk)
    assert house.coordination.put(f"disks/{disk.id}", stale.value)
    hold(house, disk)
    house.another_conductor()
    publisher(house).turn()
    before = Disk.model_validate_json(stale.value)
    nobody = {"cause": Cause()}
    assert told(house, disk) == before.model_copy(update={"started": False, "revision": before.revision + 1, **nobody})


def hold(house: House, disk: Disk) -> tuple[str, str, Export]:
    session, key = house.coordination.open_session("g1", check_ttl_s=3600), f"exports/{disk.id}/0"
    value = Export(generation=1, counter=1, node="g1", client="c", phase=ExportPhase.SERVING)
    assert house.coordination.acquire(key, value.model_dump_json().encode(), consul_session=session)
    return session, key, value


def told(house: House, disk: Disk) -> Disk:
    assert f"disks/{disk.id}" in house.noted
    entry = house.coordination.get(f"disks/{disk.id}")
    assert entry is not None
    return Disk.model_validate_json(entry.value)


@pytest.mark.parametrize("kind", [STOP, DELETE])
def test_who_serves_a_disk_that_is_stopped_or_gone_without_a_key_is_fenced(
    house: House, disk: Disk, sleeper: str, kind: OperationKind
) -> None:
    lose_coordination(house)
    house.done(kind, disk)
    serve(house, "g1", ExportId(disk.id, 0), sleeper)
    patient = publisher(house)
    patient.turn()
    assert not house.images.is_fenced(sleeper), "its gateway may just not have said yet that it stopped"
    patient.turn()
    assert house.images.is_fenced(sleeper)


def test_who_serves_a_disk_that_is_started_or_being_started_is_not_fenced(house: House, disk: Disk, sleeper: str) -> None:
    other = house.disk(name="other")
    house.done(CREATE, other, start=False)
    house.ask(OperationKind.START_DISK, other)
    lose_coordination(house)
    value = Gateway(name="g1", running={f"{disk.id}/0": sleeper, f"{other.id}/0": sleeper, "odd": sleeper})
    session = house.coordination.open_session("g1", check_ttl_s=3600)
    assert house.coordination.acquire(value.key, value.model_dump_json().encode(), consul_session=session)
    patient = publisher(house)
    patient.turn()
    patient.turn()
    assert not house.images.is_fenced(sleeper)


def test_who_serves_a_disk_that_its_image_calls_started_is_not_fenced(house: House, disk: Disk, sleeper: str) -> None:
    house.forget(disk)
    lose_coordination(house)
    serve(house, "g1", ExportId(disk.id, 0), sleeper)
    patient = publisher(house)
    patient.turn()
    patient.turn()
    assert not house.images.is_fenced(sleeper)


@pytest.fixture
def sleeper() -> Iterator[str]:
    """The client of a process that may be killed."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield f"pid:{process.pid}:{start_time(process.pid)}"
        process.kill()


@pytest.mark.parametrize("start", [True, False])
def test_an_image_that_the_records_do_not_know_keeps_its_keys(house: House, start: bool) -> None:
    unknown, gateways = house.disk(), Gateways(house.coordination)
    gateways.start()
    house.done(CREATE, unknown, start=start)
    gateways.stop()
    assert house.coordination.put(f"disks/{unknown.id}", unknown.model_dump_json().encode())
    before = house.keys(unknown)
    house.forget(unknown)
    publisher(house).turn()
    assert house.keys(unknown) == before


JUNK = ["disks/x", "exports/odd", "exports/a/b/c", "exports/a/b", "exports/a/-1", "exports/a/01"]


def test_keys_that_cannot_be_read_stop_nothing_else(house: House, disk: Disk) -> None:
    for key in JUNK:
        assert house.coordination.put(key, b"\xffjunk")
    session = house.coordination.open_session("zz", check_ttl_s=3600)
    assert house.coordination.acquire("nodes/zz", b"junk", consul_session=session)
    assert house.coordination.delete(f"disks/{disk.id}")
    publisher(house).turn()
    assert house.keys(disk) == [f"disks/{disk.id}", f"exports/{disk.id}/0"]
    assert all(house.coordination.get(key) for key in JUNK)


def test_a_description_that_cannot_be_read_is_published_again(house: House, disk: Disk) -> None:
    assert house.coordination.put(f"disks/{disk.id}", b"junk")
    publisher(house).turn()
    entry = house.coordination.get(f"disks/{disk.id}")
    assert entry is not None
    assert Disk.model_validate_json(entry.value) == house.described(disk)


def test_an_export_that_cannot_be_read_is_published_again_and_its_first_owner_fences(house: House, disk: Disk) -> None:
    lose_coordination(house)
    assert house.coordination.put(f"exports/{disk.id}/0", b"junk")
    patient = publisher(house)
    patient.turn()
    patient.turn()
    assert export(house, disk).client == "unknown"


def test_an_image_whose_description_cannot_be_read_stops_no_other_disk(house: House, disk: Disk) -> None:
    other, gateways = house.disk(name="other"), Gateways(house.coordination)
    gateways.start()
    house.done(CREATE, other)
    gateways.stop()
    bad = min(disk, other, key=lambda each: each.id)
    stored = house.images.get_metadata(bad.image)["sanderling.disk"]
    assert house.images.set_metadata(bad.image, "sanderling.disk", "junk", expected=stored)
    lose_coordination(house)
    patient = publisher(house)
    patient.turn()
    patient.turn()
    good = other if bad is disk else disk
    assert house.keys(good) == [f"disks/{good.id}", f"exports/{good.id}/0"]
