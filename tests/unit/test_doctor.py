"""What the doctor makes of what it sees, check by check, and that no check can hold it up, break it or give a secret away."""

import errno
import json
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kombu.connection import Connection
from typer.testing import CliRunner

from cli.commands.doctor import enabled
from cli.doctor import base, bus, configuration, coordination, gateways, host, images, records, targets
from cli.doctor.base import Check, Finding, Role, State, examine, fail, ok
from cli.doctor.host import Kept
from cli.main import app
from sanderling.clock import ManualClock, SystemClock
from sanderling.coordination.embedded import EmbeddedCoordination
from sanderling.errors import SettingsRefused, Unavailable
from sanderling.model.disks import Disk
from sanderling.model.disks import Path as DiskPath
from sanderling.model.exports import Front, Gateway
from sanderling.model.exports import Store as StoreSaid
from sanderling.records.database import Records
from sanderling.settings import Coordination, General, Images, Settings
from sanderling.settings import Records as RecordsSettings

CLOCK = SystemClock()
ROOT = Path(__file__).parents[2]


def states(found: Iterable[Finding]) -> dict[str, State]:
    return {one.what: one.state for one in found}


def only(found: Iterable[Finding]) -> Finding:
    (one,) = found
    return one


# base


def test_a_check_that_hangs_has_failed_and_the_others_are_told() -> None:
    never = threading.Event()

    def hang() -> Iterable[Finding]:
        yield ok("one", "seen before it hung")
        never.wait(60)

    checks = [Check("one", hang, "mend one"), Check("two", lambda: [ok("two", "well")], "mend two")]
    found, all_ended = examine(checks, timeout_s=0.3, clock=CLOCK)
    never.set()
    assert not all_ended
    assert [(one.what, one.state, one.fix) for one in found] == [
        ("one", State.OK, ""),
        ("one", State.FAIL, "mend one"),
        ("two", State.OK, ""),
    ]


def test_a_problem_is_told_with_its_fix_and_of_any_other_error_only_the_kind() -> None:
    def problem() -> Iterable[Finding]:
        raise Unavailable("it is away")

    def fault() -> Iterable[Finding]:
        raise ValueError("amqp://user:canary@host")

    found, all_ended = examine([Check("a", problem, "mend a"), Check("b", fault, "mend b")], timeout_s=5, clock=CLOCK)
    assert all_ended
    assert (found[0].seen, found[0].fix) == ("it is away", "mend a")
    assert found[1].state is State.FAIL
    assert "ValueError" in found[1].seen
    assert "canary" not in repr(found)


def test_what_is_asked_through_a_part_that_is_away_sends_to_that_part() -> None:
    def away() -> Iterable[Finding]:
        raise Unavailable("no answer", dependency="consul")

    checks = [Check(name, away, "its own fix") for name in ("consul", "consul rights", "gateways")]
    found, _ = examine(checks, timeout_s=5, clock=CLOCK)
    assert [one.fix for one in found] == ["its own fix"] * 2 + ["bring consul back first; see what is said of it here"]


def test_what_is_not_ok_always_says_what_to_do() -> None:
    with pytest.raises(AssertionError):
        fail("a", "broken", "")
    with pytest.raises(AssertionError):
        base.Finding("a", State.OK, "well", "do something")


# roles


def test_the_roles_are_those_that_systemd_starts_here(tmp_path: Path) -> None:
    assert set(enabled(tmp_path)) == set(Role)
    wants = tmp_path / "multi-user.target.wants"
    wants.mkdir()
    (wants / "sanderling-iscsi-worker.service").touch()
    (wants / "ssh.service").touch()
    assert enabled(tmp_path) == [Role.WORKER]


# settings file


@pytest.mark.parametrize(("mode", "state"), [(0o640, State.OK), (0o600, State.OK), (0o660, State.WARN), (0o644, State.FAIL)])
def test_a_settings_file_that_others_may_read_has_failed(tmp_path: Path, mode: int, state: State) -> None:
    file = tmp_path / "sanderling.conf"
    file.touch()
    file.chmod(mode)
    assert only(configuration.look(str(file))).state is state


def test_no_settings_file_is_to_be_looked_at() -> None:
    assert only(configuration.look(None)).state is State.WARN


# records


def recorded(file: Path, *, migrated: bool = True) -> Settings:
    settings = Settings(records=RecordsSettings(url=f"sqlite:///{file}"))
    if migrated:
        opened = Records(settings.records, clock=CLOCK)
        opened.migrate()
        opened.close()
    return settings


def test_records_of_this_release_are_well(tmp_path: Path) -> None:
    found = states(records.look(recorded(tmp_path / "records.sqlite"), clock=CLOCK))
    assert (found["records"], found["records' schema"]) == (State.OK, State.OK)


def test_records_that_are_not_there_are_not_made(tmp_path: Path) -> None:
    file = tmp_path / "records.sqlite"
    assert only(records.look(recorded(file, migrated=False), clock=CLOCK)).state is State.FAIL
    assert not file.exists()


def test_records_of_another_release_have_failed(tmp_path: Path) -> None:
    settings = recorded(tmp_path / "records.sqlite")
    opened = Records(settings.records, clock=CLOCK)
    with opened.begin() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    opened.close()
    found = {one.what: one for one in records.look(settings, clock=CLOCK)}["records' schema"]
    assert found.state is State.FAIL
    assert "0001" in found.seen


# consul

SELF = {
    "Config": {"NodeName": "san1", "Version": "1.8.7"},
    "DebugConfig": {**coordination.GOSSIP, "GossipLANGossipNodes": 3},
}


def server(address: str, *, status: int = 1) -> dict[str, Any]:
    return {"Status": status, "Addr": address, "Tags": {"role": "consul", "port": "8300"}}


def answering(**changes: tuple[int, Any]) -> coordination.Ask:
    """A Consul agent by the last part of each path."""
    answers: dict[str, tuple[int, Any]] = {
        "leader": (200, "10.0.0.1:8300"),
        "peers": (200, ["10.0.0.1:8300", "10.0.0.2:8300", "[fd00::3]:8300"]),
        "members": (200, [server("10.0.0.1"), server("10.0.0.2"), server("fd00::3")]),
        "self": (200, SELF),
        "authorize": (401, "ACL support disabled"),
    } | changes

    def ask(path: str, _body: Any) -> tuple[int, Any]:
        return answers[path.rpartition("/")[2]]

    return ask


def test_a_consul_of_three_servers_that_is_tuned_is_well() -> None:
    assert set(states(coordination.look(answering())).values()) == {State.OK}


def test_a_consul_without_a_leader_has_failed() -> None:
    assert states(coordination.look(answering(leader=(200, ""))))["consul quorum"] is State.FAIL


@pytest.mark.parametrize(("peers", "alive"), [(3, 2), (1, 1), (2, 2)])
def test_a_consul_that_cannot_lose_another_server_is_to_be_looked_at(peers: int, alive: int) -> None:
    members = [server(f"10.0.0.{n}", status=1 if n < alive else 4) for n in range(peers)]
    members += [{"Status": 1, "Tags": {"role": "node"}}] * 5
    members += [server("10.0.0.9")]  # has joined, and has no vote yet
    voting = [f"10.0.0.{n}:8300" for n in range(peers)]
    found = states(coordination.look(answering(peers=(200, voting), members=(200, members))))
    assert found["consul quorum"] is State.WARN


def test_gossip_that_is_not_tuned_is_named() -> None:
    slow = {**SELF, "DebugConfig": {**coordination.GOSSIP, "GossipLANProbeInterval": "1s"}}
    found = {one.what: one for one in coordination.look(answering(self=(200, slow)))}["consul gossip"]
    assert found.state is State.WARN
    assert "GossipLANProbeInterval is 1s, not 500ms" in found.seen


def test_the_gossip_that_is_asked_for_is_what_the_sample_for_consul_sets() -> None:
    sample = json.loads((ROOT / "etc/consul/sanderling.json").read_text())
    assert (
        coordination.GOSSIP["GossipLANProbeInterval"],
        coordination.GOSSIP["GossipLANProbeTimeout"],
        coordination.GOSSIP["GossipLANSuspicionMult"],
        coordination.GOSSIP["LeaveOnTerm"],
        coordination.GOSSIP["SkipLeaveOnInt"],
    ) == (*sample["gossip_lan"].values(), sample["leave_on_terminate"], sample["skip_leave_on_interrupt"])


def test_a_token_that_may_not_see_the_agent_is_told_what_it_lacks() -> None:
    found = {one.what: one for one in coordination.look(answering(self=(403, "Permission denied")))}["consul gossip"]
    assert (found.state, "agent_prefix read" in found.fix) == (State.WARN, True)


@pytest.mark.parametrize(("node", "state"), [("san1", State.OK), ("san2", State.FAIL)])
def test_a_worker_s_node_must_be_the_agent_s(node: str, state: State) -> None:
    assert only(coordination.look_at_name(answering(), node)).state is state


def test_a_token_that_may_not_write_a_prefix_has_failed_on_it() -> None:
    segments = [f"sanderling/{noun}x" for noun in coordination.WRITTEN]
    answer = [{"Segment": one, "Allow": "exports" not in one} for one in segments]
    found = only(coordination._allowed(answering(authorize=(200, answer)), "sanderling/"))
    assert (found.state, found.seen) == (State.FAIL, "the token may not write sanderling/exports/x")


def test_the_rights_are_tried_on_a_key_of_one_s_own_that_is_gone_afterwards() -> None:
    store = EmbeddedCoordination(clock=CLOCK)
    assert only(coordination.use(store, Settings(sanderling=General(node="san1")))).state is State.OK
    assert store.list("").entries == ()
    store.close()


def test_a_consul_that_is_away_is_told_without_its_token() -> None:
    own = Coordination(url="http://127.0.0.1:1", token="canary", request_timeout_s=0.2)
    settings = Settings(coordination=own)
    found, _ = examine(coordination.checks(settings, None, clock=CLOCK), timeout_s=10, clock=CLOCK)
    assert {one.state for one in found} == {State.FAIL}
    assert "canary" not in repr(found)


# rabbitmq


def test_a_broker_that_does_what_is_asked_is_well() -> None:
    broker = Connection("memory://", transport_options={"polling_interval": 0.01})
    found = states(bus.look(broker, within_s=1))
    assert (found["rabbitmq"], found["rabbitmq rights"]) == (State.OK, State.OK)


def test_a_broker_that_is_away_is_told_without_its_password() -> None:
    broker = Connection("pyamqp://user:canary@127.0.0.1:1//", connect_timeout=0.2)
    found = only(bus.look(broker, within_s=0.5))
    assert found.state is State.FAIL
    assert "Connection refused" in found.seen
    assert "canary" not in repr(found)


# ceph


class FakeCeph:
    """A cluster by the beginning of each command."""

    def __init__(self, *, data: int = 0, **answers: tuple[int, str]) -> None:
        self.data, self.asked, self.closed = data, list[dict[str, object]](), False
        self.answers = {
            "health": (0, '{"status": "HEALTH_OK", "checks": {}}'),
            "pool": (0, '{"rbd": {}}'),
            "blocklist": (0, ""),
        } | answers

    def command(self, **words: object) -> tuple[int, str]:
        self.asked.append(words)
        return next(answer for part, answer in self.answers.items() if part in str(words["prefix"]))

    def write_and_read(self, pool: str, name: str) -> int:
        return self.data

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def ceph(tmp_path: Path) -> Images:
    (tmp_path / "ceph.conf").touch()
    return Images(ceph_conf=str(tmp_path / "ceph.conf"), ceph_user="san", pool="p")


def test_a_ceph_that_lets_us_do_everything_is_well(ceph: Images) -> None:
    cluster = FakeCeph()
    assert set(states(images.look(ceph, connect=lambda: cluster)).values()) == {State.OK}
    assert cluster.closed


def test_fencing_is_tried_on_nobody_and_for_a_second(ceph: Images) -> None:
    cluster = FakeCeph()
    list(images.look(ceph, connect=lambda: cluster))
    (fence,) = [words for words in cluster.asked if words["prefix"] == "osd blocklist"]
    assert (fence["addr"], fence["expire"]) == ("192.0.2.1:0/1", 1.0)


@pytest.mark.parametrize(
    ("cluster", "what", "state"),
    [
        (FakeCeph(blocklist=(errno.EACCES, "")), "ceph fence", State.FAIL),
        (FakeCeph(pool=(errno.ENOENT, "")), "ceph pool", State.FAIL),
        (FakeCeph(pool=(0, "{}")), "ceph pool", State.WARN),
        (FakeCeph(pool=(errno.EACCES, "")), "ceph pool", State.WARN),
        (FakeCeph(data=errno.EPERM), "ceph data", State.FAIL),
        (FakeCeph(health=(0, '{"status": "HEALTH_WARN", "checks": {"A": {}}}')), "ceph health", State.WARN),
        (FakeCeph(health=(0, '{"status": "HEALTH_ERR", "checks": {}}')), "ceph health", State.FAIL),
    ],
)
def test_what_ceph_refuses_or_says_is_told(ceph: Images, cluster: FakeCeph, what: str, state: State) -> None:
    found = {one.what: one for one in images.look(ceph, connect=lambda: cluster)}
    assert found[what].state is state
    assert cluster.closed


def test_a_ceph_that_is_not_reached_is_told_with_the_user_and_the_file(ceph: Images) -> None:
    def connect() -> images.Cluster:
        raise images.Unreached("timed out")

    found = only(images.look(ceph, connect=connect))
    assert (found.state, "client.san" in found.seen, "timed out" in found.seen) == (State.FAIL, True, True)


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    absent = Images(ceph_conf=str(tmp_path / "absent.conf"))
    assert "absent.conf" in only(images.look(absent, connect=FakeCeph)).seen


# targets


def proc(folder: Path, *rows: str) -> Path:
    (folder / "net").mkdir()
    for name in ("tcp", "tcp6"):
        mine = [row for row in rows if (len(row.split()[1].partition(":")[0]) == 32) == (name == "tcp6")]
        (folder / "net" / name).write_text("\n".join(["  sl  local_address rem_address   st", *mine]) + "\n")
    return folder


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ("0: 00000000:0CBC 00000000:0000 0A", State.FAIL),
        (f"0: {'0' * 32}:0CBC {'0' * 32}:0000 0A", State.FAIL),
        ("0: 0100007F:0CBC 00000000:0000 0A", State.OK),
        ("0: 00000000:1F90 00000000:0000 0A", State.OK),
        ("0: 00000000:0CBC 0100007F:0CBC 01", State.OK),
    ],
)
def test_whoever_listens_on_port_3260_of_every_address_is_found(tmp_path: Path, row: str, state: State) -> None:
    assert only(targets.look_at_port(proc(tmp_path, row))).state is state


@pytest.mark.parametrize(
    ("effective", "missing"), [("000001ffffffffff", ""), ("0000000000001000", "CAP_NET_RAW"), ("0", "CAP_NET_ADMIN, CAP_NET_RAW")]
)
def test_the_capabilities_that_are_missing_are_named(effective: str, missing: str) -> None:
    found = only(targets.look_at_capabilities(f"Name:\tx\nCapPrm:\t0\nCapEff:\t{effective}\n"))
    assert found.state is (State.FAIL if missing else State.OK)
    assert missing in found.seen


@pytest.mark.parametrize(
    ("release", "state"), [("6.1.0-30-amd64", State.OK), ("5.18.0", State.OK), ("5.10.0-23", State.FAIL), ("4.19", State.FAIL)]
)
def test_a_kernel_that_is_too_old_has_failed(release: str, state: State) -> None:
    assert only(targets.look_at_kernel(release)).state is state


def test_a_guard_that_is_not_built_is_told_with_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused, match="make guard"):
        list(targets.look_at_guard(str(tmp_path / "guard.so")))


def test_a_target_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert only(targets.look_at_tgtd(str(tmp_path / "tgtd"), None)).state is State.FAIL


def test_an_interface_that_started_disks_need_is_missed() -> None:
    path = DiskPath(index=1, address="10.0.0.1", prefix_len=24, interface="eth2", subnet="s")
    disk = Disk(id="d", name="d", iqn="iqn.x:d", size_bytes=512, paths=(path,), started=True)
    assert targets.needed([disk], ["eth0", "eth2"]).state is State.OK
    assert targets.needed([disk], ["eth0"]).state is State.WARN
    assert targets.needed([disk.model_copy(update={"started": False}), None], ["eth0"]).state is State.OK


# clock

NOON = datetime(2026, 11, 27, 12, 0, 0, 300_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("Fri, 27 Nov 2026 12:00:00 GMT", State.OK),
        ("Fri, 27 Nov 2026 11:59:58 GMT", State.OK),
        ("Fri, 27 Nov 2026 11:59:50 GMT", State.WARN),
        ("Fri, 27 Nov 2026 12:00:10 GMT", State.WARN),
        ("Fri, 27 Nov 2026 13:00:00 +0100", State.OK),
    ],
)
def test_another_s_time_is_compared_as_closely_as_it_is_told(said: str, state: State) -> None:
    assert host.compared("the API", said, before=NOON, after=NOON + timedelta(milliseconds=20)).state is state


def test_a_clock_that_nothing_keeps_in_step_is_to_be_looked_at() -> None:
    assert host.look_at_kernel(Kept(in_step=True, error_most_s=0.01)).state is State.OK
    assert host.look_at_kernel(Kept(in_step=False, error_most_s=16.0)).state is State.WARN
    assert host.look_at_kernel(None).state is State.WARN


def test_the_kernel_tells_how_its_clock_is_kept() -> None:
    kept = host.kernel()
    assert kept is None or 0 <= kept.error_most_s <= 60


# gateways


def test_gateways_are_told_apart_by_life_release_and_reach() -> None:
    store = EmbeddedCoordination(clock=ManualClock())
    said = {
        "well": Gateway(name="well", version="2"),
        "old": Gateway(name="old", version="1"),
        "older": Gateway(name="older"),
        "cut": Gateway(name="cut", version="2", front=Front(cut_off=("eth1",)), store=StoreSaid(cut_off=True)),
    }
    for name, gateway in said.items():
        session = store.open_session(name, check_ttl_s=60)
        store.acquire(gateway.key, gateway.model_dump_json().encode(), consul_session=session)
    store.put("nodes/dead", Gateway(name="dead", version="2").model_dump_json().encode())
    found = {one.what.removeprefix("gateway "): one for one in gateways.look(store, "2")}
    assert {name: one.state for name, one in found.items()} == {
        "well": State.OK,
        "old": State.WARN,
        "older": State.WARN,
        "cut": State.FAIL,
        "dead": State.FAIL,
    }
    assert "eth1, the image store" in found["cut"].seen


# the command


def test_the_command_tells_what_fails_as_json_and_gives_no_secret_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sanderling.conf"
    file.write_text(
        "[bus]\nurl = rabbit://user:canary@127.0.0.1:1/\nsend_timeout_s = 0.5\n"
        "[coordination]\nurl = http://127.0.0.1:1\ntoken = canary\nrequest_timeout_s = 0.2\n"
        f"[records]\nurl = postgresql://user:canary@127.0.0.1:1/db\n[images]\nceph_conf = {tmp_path}/absent.conf\n"
    )
    file.chmod(0o640)
    monkeypatch.setenv("SANDERLING_CONFIG", str(file))
    monkeypatch.setenv("SANDERLING_CLIENT", str(tmp_path / "none.json"))
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 1
    found = {one["check"]: one for one in json.loads(done.stdout)}
    for what in ("records", "consul", "rabbitmq", "ceph"):
        assert found[what]["state"] == "fail"
        assert found[what]["fix"]
    assert found["settings file"]["state"] == "ok"
    assert "canary" not in done.output
    assert "Traceback" not in done.output


def test_a_role_is_asked_only_for_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sanderling.conf"
    file.write_text("[coordination]\nurl = http://127.0.0.1:1\nrequest_timeout_s = 0.2\n")
    monkeypatch.setenv("SANDERLING_CONFIG", str(file))
    done = CliRunner().invoke(app, ["doctor", "--json", "--role", "leader"])
    asked = {one["check"] for one in json.loads(done.stdout)}
    assert {"consul", "records"} <= asked
    assert not {"rabbitmq", "ceph", "tgtd", "guard", "libiscsi"} & asked


def test_a_library_that_is_not_installed_is_named_with_its_package() -> None:
    (found,) = targets.look_at_library("libiscsi.so.none")
    assert (found.state, found.fix) == (State.FAIL, "apt-get install libiscsi7")
    assert "libiscsi.so.none" in found.seen
