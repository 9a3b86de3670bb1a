"""Commands that only a holder of the key file can give, and what comes of those that somebody else gives."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from iscsi_worker.endpoints.exports import endpoint
from rpc.dispatch import Dispatch
from rpc.messages import ExportCommand
from rpc.signing import Signing
from sanderling.clock import ManualClock, SystemClock
from sanderling.errors import CommandExpired, NotAuthentic, SecretUnreadable, SettingsRefused, StaleEpoch
from sanderling.model.exports import ExportPhase
from sanderling.model.moves import MoveState
from sanderling.model.operations import OperationState
from sanderling.secrets import Keyring
from sanderling.settings import Secrets, Settings
from tests.fleet import Sent
from tests.house import House
from tests.unit.commands import commanded, keys, signing
from tests.unit.test_assignments import ask, move, problem, started, states
from tests.unit.test_worker_moves import Pair

METHOD, SERVER = "export.clean", "node-1"
COMMAND = ExportCommand(operation_id="o", disk_id="d", index=1, generation=2, counter=3, destination="node-2")
CHANGES: dict[str, Any] = {
    "operation_id": "p",
    "disk_id": "e",
    "index": 2,
    "generation": 3,
    "counter": 4,
    "destination": "node-3",
    "expires_at": 4102444800.0,
    "signature": "",
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def signer(tmp_path: Path, clock: ManualClock) -> Signing:
    return signing(keys(tmp_path / "keys"), clock)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.stop()


def refusals(reason: str) -> float:
    return REGISTRY.get_sample_value("sanderling_commands_refused_total", {"reason": reason}) or 0.0


def test_a_signed_command_is_taken_after_it_has_crossed(signer: Signing) -> None:
    signed = signer.signed(METHOD, COMMAND, server=SERVER)
    signer.check(METHOD, ExportCommand.model_validate_json(signed.model_dump_json()), server=SERVER)


def test_every_field_that_a_worker_goes_by_is_bound() -> None:
    assert set(ExportCommand.model_fields) == set(CHANGES) | {"version", "traceparent"}


@pytest.mark.parametrize("field", CHANGES)
def test_a_command_of_which_anything_was_replaced_is_refused(signer: Signing, field: str) -> None:
    before = refusals("signature") + refusals("unsigned")
    forged = signer.signed(METHOD, COMMAND, server=SERVER).model_copy(update={field: CHANGES[field]})
    with pytest.raises(NotAuthentic):
        signer.check(METHOD, forged, server=SERVER)
    assert refusals("signature") + refusals("unsigned") == before + 1


def test_a_command_for_another_node_or_of_another_method_is_refused(signer: Signing) -> None:
    signed = signer.signed(METHOD, COMMAND, server=SERVER)
    with pytest.raises(NotAuthentic):
        signer.check(METHOD, signed, server="node-2")
    with pytest.raises(NotAuthentic):
        signer.check("export.path_host", signed, server=SERVER)


@pytest.mark.parametrize("signature", ["0" * 64, "\ud800", "é", "x" * 60000])
def test_a_signature_of_any_form_is_refused_and_breaks_nothing(signer: Signing, signature: str) -> None:
    signed = signer.signed(METHOD, COMMAND, server=SERVER)
    with pytest.raises(NotAuthentic):
        signer.check(METHOD, signed.model_copy(update={"signature": signature}), server=SERVER)


@pytest.mark.parametrize("later_s", [61.0, 3600.0])
def test_a_command_that_has_expired_is_refused(signer: Signing, clock: ManualClock, later_s: float) -> None:
    signed = signer.signed(METHOD, COMMAND, server=SERVER)
    clock.advance(59.0)  # 30 s, and as much for clocks that differ
    signer.check(METHOD, signed, server=SERVER)
    clock.advance(later_s - 59.0)
    with pytest.raises(CommandExpired):
        signer.check(METHOD, signed, server=SERVER)


def test_a_command_of_a_node_whose_clock_is_far_ahead_is_refused(tmp_path: Path, clock: ManualClock) -> None:
    options = keys(tmp_path / "keys")
    for ahead_s, refused in ((29, False), (3600, True)):
        ahead = signing(options, ManualClock(clock.wall() + timedelta(seconds=ahead_s)))
        signed = ahead.signed(METHOD, COMMAND, server=SERVER)
        if refused:
            with pytest.raises(CommandExpired):
                signing(options, clock).check(METHOD, signed, server=SERVER)
        else:
            signing(options, clock).check(METHOD, signed, server=SERVER)


def test_the_first_key_signs_all_verify_and_a_file_that_changes_counts_at_once(tmp_path: Path, clock: ManualClock) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    sender, receiver = signing(keys(tmp_path / "sender", old), clock), signing(keys(tmp_path / "receiver", old), clock)
    receiver.check(METHOD, sender.signed(METHOD, COMMAND, server=SERVER), server=SERVER)
    keys(tmp_path / "receiver", old, new)
    keys(tmp_path / "sender", new, old)
    signed = sender.signed(METHOD, COMMAND, server=SERVER)
    receiver.check(METHOD, signed, server=SERVER)
    keys(tmp_path / "receiver", old)
    with pytest.raises(NotAuthentic):
        receiver.check(METHOD, signed, server=SERVER)


def test_without_a_key_file_nothing_is_signed_and_a_line_at_the_start_says_so(clock: ManualClock, signer: Signing) -> None:
    with capture_logs() as said:
        without = signing(Secrets(), clock)
    assert ["not signed" in line["event"] for line in said] == [True]
    assert without.signed(METHOD, COMMAND, server=SERVER) == COMMAND
    without.check(METHOD, COMMAND, server=SERVER)
    without.check(METHOD, signer.signed(METHOD, COMMAND, server=SERVER), server=SERVER)  # while keys are brought in
    with pytest.raises(NotAuthentic):
        signer.check(METHOD, COMMAND, server=SERVER)


def test_signing_that_is_required_and_cannot_be_refuses_to_start() -> None:
    with pytest.raises(SettingsRefused, match="require_signed"):
        Settings(secrets=Secrets(require_signed="on"))


def test_a_key_for_one_purpose_is_of_no_use_for_another(tmp_path: Path) -> None:
    options = keys(tmp_path / "keys")
    ring = Keyring(options)
    (one,), (other,) = ring.derived("one"), ring.derived("other")
    assert one != other
    assert len(one) == 32
    assert Keyring(options).derived("one") == (one,)
    assert str(one) not in f"{ring._opened()!r}"
    with pytest.raises(SecretUnreadable):
        Keyring(Secrets()).derived("one")


def test_a_forged_command_is_parked_once_logged_without_its_content_and_the_next_is_heard(pair: Pair, signer: Signing) -> None:
    parked: list[str] = []
    methods = {f"export.{name}": method for name, method in commanded(pair.a.worker, signer).methods.items()}
    dispatch = Dispatch("iscsi_worker", methods, park=lambda *what: parked.append(what[3]), payload_max_bytes=65536)
    value = pair.value
    good = COMMAND.model_copy(
        update={"disk_id": "1", "index": 0, "generation": value.generation, "counter": value.counter, "destination": "b"}
    )
    signed = signer.signed(METHOD, good, server="a")
    forged = signed.model_copy(update={"operation_id": "somebody-elses-words"})
    with capture_logs() as said:
        assert dispatch.answer(METHOD, forged.model_dump(mode="json"))["problem"]["code"] == "not-authentic"
    assert parked == ["not-authentic"]
    assert "handler refused" in [line["event"] for line in said]
    assert not [line for line in said if "somebody-elses-words" in str(line.get("detail"))]
    assert pair.a.worker._intents.told().handing == {}
    assert "ok" in dispatch.answer(METHOD, signed.model_dump(mode="json"))
    assert pair.a.worker._intents.told().handing


def test_a_command_that_is_replayed_while_it_holds_moves_nothing_twice(pair: Pair, signer: Signing) -> None:
    value = pair.value
    wanted = COMMAND.model_copy(update={"disk_id": "1", "index": 0, "generation": value.generation, "counter": value.counter})
    take = signer.signed("export.path_host", wanted.model_copy(update={"destination": ""}), server="b")
    give = signer.signed(METHOD, wanted.model_copy(update={"destination": "b"}), server="a")

    def replay() -> None:
        commanded(pair.b.worker, signer).methods["path_host"][1](take)
        commanded(pair.a.worker, signer).methods["clean"][1](give)

    def turned(over: Callable[[], bool]) -> Callable[[], bool]:
        def replayed() -> bool:
            if pair.value.epoch == value.epoch:
                replay()
            return over()

        return replayed

    pair.until(turned(lambda: pair.value.phase is ExportPhase.SERVING and pair.value.node == "b"), "b serves")
    pair.until(lambda: not pair.a.targets.actual() and not pair.a.addresses.lent(), "a has ended")
    assert pair.value.epoch == value.epoch.following, "it moved once"
    for side, method, command in ((pair.b, "path_host", take), (pair.a, "clean", give)):
        with pytest.raises(StaleEpoch):
            commanded(side.worker, signer).methods[method][1](command)
    for _ in range(5):
        pair.a.turn()
        pair.b.turn()
    assert (pair.value.node, pair.value.epoch) == ("b", value.epoch.following)


@pytest.mark.parametrize("jump_h", [-1, 0, 1])
def test_at_a_clock_that_is_an_hour_wrong_moves_fail_and_are_recorded_so(house: House, tmp_path: Path, jump_h: int) -> None:
    options = keys(tmp_path / "keys")
    fleet = house.fleet("g1", "g2")
    there = signing(options, ManualClock(datetime.now(UTC) + timedelta(hours=jump_h)))
    house.stores = replace(house.stores, signing=signing(options, SystemClock()))

    def heard(sent: Sent) -> bool:
        try:
            there.check(sent.method, sent.command, server=sent.server)
        except CommandExpired:
            return False
        return True

    fleet.before = heard
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    ended = house.drive(ask(house, move(disk, "g1", "g2")))
    if jump_h == 0:
        assert (ended.state, fleet.owner(export)) == (OperationState.SUCCEEDED, "g2")
        return
    assert (ended.state, states(house, ended)) == (OperationState.FAILED, [MoveState.FAILED])
    assert "not moved within" in problem(ended)
    assert fleet.owner(export) == "g1"


def test_a_conductor_whose_keys_cannot_be_read_sends_nothing_unsigned(house: House, tmp_path: Path) -> None:
    options = keys(tmp_path / "keys")
    fleet = house.fleet("g1", "g2")
    house.stores = replace(house.stores, signing=signing(options, SystemClock()))
    (tmp_path / "keys").unlink()
    disk = started(house)
    (export,) = fleet.serve(disk, "g1")
    ended = house.drive(ask(house, move(disk, "g1", "g2")))
    assert (ended.state, fleet.sent, fleet.owner(export)) == (OperationState.FAILED, [], "g1")


def test_the_worker_checks_before_it_does_anything(signer: Signing) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was reached by a command that nobody signed")

    for _, handle in endpoint(Untouchable(), signer, node=SERVER).methods.values():  # type: ignore[arg-type]
        with pytest.raises(NotAuthentic):
            handle(COMMAND)
