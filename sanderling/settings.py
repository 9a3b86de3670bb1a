"""Every bound and choice, in one ini file for all processes: read once at the entry point, frozen, and passed on.

oslo.messaging insists on the global `cfg.CONF` (a private ConfigOpts lacks options that it registers at import), so this module
registers there too, but only `load` reads it. The sample in etc/ is generated from these options; a test fails when it is stale.
"""

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from oslo_config import cfg

from sanderling.errors import SettingsRefused

NODE_MAX: Final = 64  # what Linux allows a host's name, and the columns of the records hold


def _of(
    default: Any, meaning: str, *, secret: bool = False, choices: Sequence[str] | None = None, least: float | None = None
) -> Any:
    metadata = {"help": meaning, "secret": secret, "choices": choices, "least": least}
    if isinstance(default, tuple):
        return field(default=default, metadata=metadata)
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, slots=True)
class General:
    """[sanderling]: what every process shares."""

    node: str = _of(socket.gethostname(), "This machine's name: unique in the cluster, and the Consul agent's node name")
    runtime_dir: str = _of("/run/sanderling", "Folder for sockets, leases and the consul session's id; a tmpfs is right")
    log_level: str = _of("INFO", "Least severe level that is logged", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    log_format: str = _of("json", "json for machines, console for people", choices=("json", "console"))
    iqn_base: str = _of("iqn.2026-11.io.sanderling", "IQN of a disk that was given none: this, a colon and the disk's name")
    metrics_host: str = _of("127.0.0.1", "Address that each process's metrics_port listens on; who reaches it may read it")


@dataclass(frozen=True, slots=True)
class Records:
    """[records]: operations, the index of disks, history."""

    url: str = _of("sqlite:////var/lib/sanderling/records.sqlite", "SQLAlchemy URL of the records", secret=True)
    busy_timeout_s: float = _of(10.0, "How long a write waits for another writer", least=0.1)
    connect_timeout_s: int = _of(5, "PostgreSQL: bound of connecting to one server", least=2)
    statement_timeout_s: float = _of(
        15.0, "PostgreSQL: bound of one statement, the wait for another writer included; raise it for an upgrade", least=0.1
    )
    idle_timeout_s: float = _of(
        5.0, "PostgreSQL: a process that hangs for this long in the midst of a write loses it, and others may write", least=0.1
    )
    pool_size: int = _of(8, "Connections kept per process", least=1)


@dataclass(frozen=True, slots=True)
class Secrets:
    """[secrets]: what encrypts the secrets that are kept."""

    key_file: str = _of(
        "", "Keys, one a line (`sanderling key new` makes one): the first seals and signs, all open. The same on every node"
    )
    require_signed: str = _of(
        "off", "on refuses to start without a key_file, with which commands to workers are signed", choices=("on", "off")
    )
    command_valid_s: float = _of(30.0, "How long a signed command to a worker holds", least=1)
    clock_difference_s: float = _of(
        30.0, "How far the clocks of two nodes may be apart; beyond it signed commands are refused, and moves fail", least=0
    )


@dataclass(frozen=True, slots=True)
class Coordination:
    """[coordination]: who serves what."""

    backend: str = _of("consul", "consul, or embedded for everything in one process", choices=("consul", "embedded"))
    url: str = _of("http://127.0.0.1:8500", "The Consul agent of this node")
    token: str = _of("", "Consul ACL token", secret=True)
    ca_file: str = _of("", "CA that signed the Consul agent's certificate; needed when the URL is https")
    cert_file: str = _of("", "Certificate to show the Consul agent, for one that wants to see one (verify_incoming)")
    key_file: str = _of("", "Its private key")
    prefix: str = _of("sanderling/", "Put before every key")
    request_timeout_s: float = _of(5.0, "Bound of one request that does not wait", least=0.1)
    watch_timeout_s: float = _of(10.0, "Longest wait of one blocking query", least=0.1)
    check_ttl_s: float = _of(5.0, "A worker that has not fed its check for this long is replaced", least=0.5)


@dataclass(frozen=True, slots=True)
class Images:
    """[images]: the data."""

    backend: str = _of("rbd", "rbd, or files on one host", choices=("rbd", "files"))
    folder: str = _of("/var/lib/sanderling/images", "files: where images lie")
    ceph_conf: str = _of("/etc/ceph/ceph.conf", "rbd: the cluster's configuration file; it is only read")
    ceph_user: str = _of("sanderling", "rbd: cephx user, without 'client.'")
    pool: str = _of("rbd", "rbd: pool of the images")
    connect_timeout_s: float = _of(5.0, "rbd: bound of connecting to the monitors", least=0.1)
    operation_timeout_s: float = _of(30.0, "rbd: bound of one operation on the cluster", least=0.1)
    fence_expire_s: int = _of(
        7 * 86400, "rbd: how long a blocklist entry lasts; a node frozen for longer resumes unfenced", least=86400
    )


@dataclass(frozen=True, slots=True)
class Bus:
    """[bus]: wake-ups between processes."""

    url: str = _of("rabbit://guest:guest@127.0.0.1:5672/", "oslo.messaging transport URL; fake:// for one process", secret=True)
    ca_file: str = _of("", "CA that signed RabbitMQ's certificate; turns TLS on")
    cert_file: str = _of("", "Certificate to show RabbitMQ, for one that wants to see one (fail_if_no_peer_cert)")
    key_file: str = _of("", "Its private key")
    send_retries: int = _of(1, "How often a send is tried again before it is Unavailable", least=0)
    handlers: int = _of(8, "Messages handled at once per server", least=1)
    prefetch: int = _of(16, "Unacknowledged messages per consumer", least=1)
    heartbeat_s: int = _of(10, "AMQP heartbeat: a silent broker is noticed after this long", least=1)
    stop_timeout_s: float = _of(5.0, "How long stopping waits for handlers at work", least=0.1)
    probe_interval_s: float = _of(2.0, "How often a server asks itself over the bus whether it still hears", least=0.1)
    probe_failures_max: int = _of(3, "Probes not heard in a row before a server is built again", least=1)
    send_timeout_s: float = _of(5.0, "Bound of one send, its retries included", least=0.1)
    requeue_delay_s: float = _of(0.5, "How long a report waits before it is delivered again", least=0.05)
    news_gap_s: float = _of(0.05, "Least time between two messages of one process that there are new events", least=0.0)
    payload_max_bytes: int = _of(65536, "Largest message", least=1024)
    parked_max: int = _of(1000, "Poison messages kept to be looked at; the oldest goes first", least=1)


@dataclass(frozen=True, slots=True)
class Api:
    """[api]: HTTP."""

    host: str = _of("127.0.0.1", "Address to listen on")
    port: int = _of(8080, "Port to listen on", least=0)
    tls_cert: str = _of("", "Certificate file; with tls_key, serves HTTPS")
    tls_key: str = _of("", "Private key file")
    tls_client_ca: str = _of("", "CA of clients: then whoever shows no certificate by it is turned away before any request")
    body_max_bytes: int = _of(65536, "Largest request body", least=1024)
    head_max_bytes: int = _of(65536, "Largest request line with all headers", least=4096)
    page_max: int = _of(1000, "Most rows on a page", least=1)
    page_default: int = _of(100, "Rows on a page when none is asked for", least=1)
    subscribers_max: int = _of(100, "Event streams open at once", least=1)
    outbox_batch: int = _of(100, "Operations cast per turn of the outbox", least=1)
    outbox_interval_s: float = _of(1.0, "Longest time between turns of the outbox", least=0.05)
    outbox_retry_most_s: float = _of(5.0, "Longest time between turns of the outbox while the broker is away", least=0.05)
    capacity_age_s: float = _of(5.0, "How old the pool's size may be when that of a new disk is checked against it", least=0.0)
    events_interval_s: float = _of(1.0, "Longest time between looks for events that nobody told of", least=0.05)
    body_timeout_s: float = _of(10.0, "How long a request body may take to arrive", least=0.1)
    subscriber_timeout_s: float = _of(30.0, "An event stream whose reader takes nothing for this long is closed", least=1)
    stop_timeout_s: float = _of(5.0, "How long stopping waits for requests at work", least=0.1)
    dependency_timeout_s: float = _of(3.0, "Bound of asking Consul or Ceph inside a request", least=0.1)
    policy_file: str = _of("", "oslo.policy file that overrides the defaults")
    default_initiators: str = _of(
        "", "Names of the initiators, with commas between, that may log in to a new disk for which nobody is named"
    )
    rate_limits: str = _of(
        "*: 12000/minute",
        "How many operations of each kind one token may ask for, each API process by itself, as `kind: number/time`, with commas "
        "between; * is every kind that is not named; empty for no limit",
    )
    open_operations_max: int = _of(10000, "Operations of one kind that have not ended; more are refused", least=1)
    queue_max: int = _of(
        8, "Operations that may wait for one that is at work on the same disk, or on the spread of paths; 0 for none", least=0
    )
    plan_keep_s: float = _of(3600.0, "How long a plan of moves can be applied; older ones are dropped", least=1)
    gaps_max: int = _of(1000, "Newest reports of moves and failovers that gaps are reckoned from", least=1)


@dataclass(frozen=True, slots=True)
class Conductor:
    """[conductor]: driving operations on."""

    workers: int = _of(8, "Operations driven at once", least=1)
    claim_ttl_s: float = _of(5.0, "A claim that is not renewed for this long may be taken by another conductor", least=0.5)
    sweep_interval_s: float = _of(1.0, "How often unclaimed operations are looked for", least=0.05)
    step_attempts_max: int = _of(8, "How often a step is tried before the operation is undone", least=1)
    retry_first_s: float = _of(0.2, "Wait before the first retry of a step; doubles", least=0.01)
    retry_most_s: float = _of(5.0, "Longest wait between retries of a step", least=0.01)
    image_deadline_s: float = _of(60.0, "Deadline of a step that changes an image", least=1)
    roll_back_deadline_s: float = _of(3600.0, "Deadline of rolling an image back to a snapshot", least=1)
    recover_deadline_s: float = _of(600.0, "Deadline of rebuilding the index of disks from the images", least=1)
    publish_deadline_s: float = _of(30.0, "Deadline of a step that writes coordination", least=1)
    serve_deadline_s: float = _of(60.0, "Deadline of waiting until a disk is served, or no longer served", least=1)
    republish_interval_s: float = _of(10.0, "How often coordination is compared with the records", least=0.5)
    schedule_interval_s: float = _of(10.0, "How often is looked for snapshots that a schedule asks for", least=0.05)
    moves_per_gateway: int = _of(4, "Moves under way at once at any one gateway, as source or as destination", least=1)
    move_deadline_s: float = _of(30.0, "How long a move may take before its command is withdrawn", least=1)
    move_settle_s: float = _of(
        15.0,
        "How long after that nothing of the move may be left: more than [iscsi_worker] move_intent_s + move_drain_s",
        least=0.1,
    )
    move_repeat_s: float = _of(2.0, "How often the commands of a move under way are sent again", least=0.05)
    balance: str = _of(
        "on", "on spreads paths evenly again after gateways came or went, off leaves that to people", choices=("on", "off")
    )
    balance_interval_s: float = _of(5.0, "How often the spread of paths is looked at", least=0.05)
    balance_cool_down_s: float = _of(
        30.0, "How long the same gateways must have been there, with the same marks, before paths are moved", least=0
    )
    balance_moves_max: int = _of(100, "Moves that balancing may begin within balance_window_s", least=1)
    balance_window_s: float = _of(600.0, "The time in which they are counted", least=1)
    gap_alert_s: float = _of(5.0, "A move or failover with a longer gap in service is an alert.gap event; 0 for none", least=0)
    metrics_port: int = _of(0, "Port of GET /metrics for Prometheus, on [sanderling] metrics_host; 0 for none", least=0)


@dataclass(frozen=True, slots=True)
class Worker:
    """[iscsi_worker]: serving exports."""

    targets: str = _of("tgt", "tgt, or memory for simulation", choices=("tgt", "memory"))
    addresses: str = _of(
        "netlink", "netlink; loopback for 127.0.0.0/8; memory for simulation", choices=("netlink", "loopback", "memory")
    )
    lease_s: float = _of(5.0, "How long an export may do I/O after the last renewal", least=1)
    renew_interval_s: float = _of(1.0, "How often leases and addresses are renewed", least=0.1)
    address_lifetime_s: int = _of(5, "Kernel lifetime of a path's address after the last renewal", least=2)
    drain_timeout_s: float = _of(10.0, "How long giving up waits for operations in flight before it fences itself", least=0.1)
    target_start_timeout_s: float = _of(15.0, "How long a target process may take to be ready", least=1)
    target_command_timeout_s: float = _of(2.0, "Bound of one command to a target process that is ready", least=0.1)
    probe_timeout_s: float = _of(1.0, "Bound of reading LBA 0 through one's own portal", least=0.1)
    probe_interval_s: float = _of(5.0, "How often each export is probed", least=0.5)
    probe_failures_max: int = _of(3, "Probes that fail in a row before an export is started again", least=1)
    grace_s: float = _of(
        2.0, "How long a free export waits for the gateway it was placed on before the next may take it", least=0.1
    )
    stand_back_s: float = _of(15.0, "How long a worker leaves an export alone that it failed to take", least=0.1)
    watch_rest_per_key_s: float = _of(
        0.002, "How long a worker rests after it has seen a change, for each key that it read", least=0
    )
    watch_rest_most_s: float = _of(0.5, "The longest such rest: so much later the death of a gateway may be seen", least=0)
    read_all_per_key_s: float = _of(
        0.005,
        "All keys are read again every renew_interval_s, or, where that is more, in so much time for each key there is",
        least=0,
    )
    read_all_most_s: float = _of(300.0, "Longest time between two readings of all keys", least=1)
    move_intent_s: float = _of(10.0, "How long a command to take or to hand on an export holds when it is not repeated", least=1)
    move_drain_s: float = _of(
        3.0, "How long handing an export on waits for operations in flight before it goes on serving", least=0.1
    )
    move_linger_s: float = _of(2.0, "How long the process of an export that was handed on waits for its heir", least=0.1)
    front_probe_interval_s: float = _of(0.5, "How often other gateways are asked for over the networks of the paths", least=0.1)
    front_probe_timeout_s: float = _of(0.25, "How long another gateway may take to answer there", least=0.05)
    front_probe_failures_max: int = _of(
        3, "Times in a row that a gateway does not answer before it is said to be unreachable", least=1
    )
    front_probe_peers: int = _of(4, "Gateways that each worker asks for on each interface", least=2)
    front_hold_s: float = _of(
        15.0, "How long a gateway that was cut off on the network of its paths stands back after it is reached again", least=0.1
    )
    front_hold_most_s: float = _of(
        300.0, "Longest such time: it doubles for a gateway that is cut off again within this", least=0.1
    )
    store_ask_interval_s: float = _of(1.0, "How often each worker asks whether the image store answers it", least=0.1)
    store_ask_timeout_s: float = _of(1.0, "rbd: bound of connecting for that, and of reading", least=0.1)
    store_believed_s: float = _of(
        3.0, "How old an answer of the image store may be, and how long it must have answered again, to be counted on", least=0.1
    )
    store_silent_s: float = _of(
        8.0,
        "A gateway that the image store has not answered for this long, while it answers others, leaves its exports to them; "
        "longer than a dead gateway's word counts ([coordination] check_ttl_s)",
        least=0.2,
    )
    store_hold_s: float = _of(
        15.0, "How long a gateway that was cut off from the image store stands back after it is answered again", least=0.1
    )
    store_hold_most_s: float = _of(
        300.0, "Longest such time: it doubles for a gateway that is cut off again within this", least=0.1
    )
    lanes: int = _of(16, "Exports taken or given up at once", least=1)
    iothreads: int = _of(16, "I/O threads of one target process", least=1)
    announcements: int = _of(20, "How often a new address is announced, about half a minute long", least=1)
    announce_interval_s: float = _of(0.1, "Time between the first two announcements; then it doubles", least=0)
    announce_interval_most_s: float = _of(2.0, "Longest time between two announcements", least=0)
    reports_max: int = _of(1000, "Reports kept while the broker is away; the oldest is dropped", least=1)
    report_retry_s: float = _of(1.0, "Wait before a report is sent again", least=0.05)
    take_retry_s: float = _of(
        0.25,
        "Wait before a taking in which another was faster is tried again, and before a gateway's word that was put off",
        least=0.01,
    )
    withdraw_timeout_s: float = _of(30.0, "How long stopping waits until every export has been given up", least=1)
    tgtd: str = _of("/usr/sbin/tgtd", "The target program")
    guard: str = _of("", "The guard library; empty for the one that was installed with Sanderling")
    metrics_port: int = _of(0, "Port of GET /metrics for Prometheus, on [sanderling] metrics_host; 0 for none", least=0)


@dataclass(frozen=True, slots=True)
class Leader:
    """[leader]: election."""

    watch_timeout_s: float = _of(1.0, "Longest wait of one look at the leader key; stopping may wait for it", least=0.1)
    check_ttl_s: float = _of(3.0, "A leader that has not fed its check for this long is replaced", least=0.5)
    renew_interval_s: float = _of(0.5, "How often leadership is proved", least=0.05)
    lease_s: float = _of(2.0, "A leader that could not prove its lock for this long stops its duties", least=0.1)
    lock_delay_s: int = _of(1, "How long Consul keeps a dead leader's lock from others", least=0)
    duty_stop_timeout_s: float = _of(1.0, "Bound of stopping a duty before the process ends itself", least=0.1)
    candidacy_pause_s: float = _of(
        5.0,
        "How long a leader that stepped down, or died, leaves the others to stand first; doubles when its duties fail again",
        least=0,
    )
    candidacy_pause_most_s: float = _of(60.0, "Longest such time", least=0)
    duty_start_timeout_s: float = _of(15.0, "A duty that has not started within this hands leadership on", least=0.1)
    duty_turn_timeout_s: float = _of(90.0, "A duty that does not get through one turn within this hands leadership on", least=1)
    metrics_port: int = _of(0, "Port of GET /metrics for Prometheus, on [sanderling] metrics_host; 0 for none", least=0)


@dataclass(frozen=True, slots=True)
class Statistics:
    """[statistics]: what the leader measures."""

    interval_s: float = _of(10.0, "How often the cluster and each gateway are measured", least=0.5)
    export_interval_s: float = _of(60.0, "How often each export is measured", least=0.5)
    exports_max: int = _of(1000, "Exports measured in one turn; of more than this each is measured less often", least=1)
    keep_s: float = _of(86400.0, "How long samples are kept", least=60)
    coarse_s: int = _of(300, "Samples of the cluster and of gateways are averaged over this, to be kept for longer", least=60)
    coarse_keep_s: float = _of(30 * 86400.0, "How long these averages are kept", least=60)
    prune_rows: int = _of(5000, "Samples that are dropped in one turn at most", least=100)
    ask_timeout_s: float = _of(3.0, "How long a turn waits for the pool's usage before it goes on without", least=0.1)


@dataclass(frozen=True, slots=True)
class Notifications:
    """[notifications]: events told to the outside, by the leader."""

    interval_s: float = _of(1.0, "How often new events are looked for", least=0.05)
    couriers: int = _of(4, "Rules whose events are delivered at once; each takes a process of its own", least=1)
    rules_max: int = _of(100, "Rules there may be", least=1)
    scan_max: int = _of(1000, "Events that are looked at for one rule in one turn", least=10)
    timeout_s: float = _of(10.0, "Bound of one attempt to deliver one event", least=0.1)
    retry_first_s: float = _of(1.0, "Wait before a delivery that failed is tried again; doubles", least=0.01)
    retry_most_s: float = _of(60.0, "Longest wait between two attempts", least=0.01)
    keep_s: float = _of(
        3 * 86400.0, "An event that could not be delivered for this long is given up, and the next one tried", least=1
    )
    schemas: str = _of(
        "mailto,mailtos,json,jsons,xml,xmls,form,forms,slack,workflows,tgram,discord,mmost,mmosts,rocket,rockets,matrix,matrixs,"
        "pagerduty,opsgenie,ntfy,ntfys,gotify,gotifys",
        "Kinds of receivers that a rule may name: schemas of apprise, separated by commas",
    )
    loopback: str = _of("off", "on lets rules name receivers on loopback and link-local addresses", choices=("on", "off"))


@dataclass(frozen=True, slots=True)
class Tracing:
    """[tracing]: spans, sent by OpenTelemetry's protocol over HTTP."""

    enabled: str = _of("off", "on records what each action does and how long that takes, and sends it", choices=("on", "off"))
    endpoint: str = _of("http://127.0.0.1:4318/v1/traces", "Where to: an OTLP/HTTP collector's address for traces")
    ca_file: str = _of("", "CA that signed the collector's certificate; needed when the endpoint is https")
    sample_ratio: float = _of(1.0, "The share of traces that is recorded, the same in every process: 0 to 1", least=0)
    queue_max: int = _of(2048, "Spans kept until they are sent; what comes when it is full is dropped", least=1)
    send_interval_s: float = _of(1.0, "How often they are sent", least=0.05)
    send_timeout_s: float = _of(
        5.0, "Bound of sending once, its retries included, and of sending what is left at the end", least=0.1
    )


_BESIDE = "oslo_messaging_rabbit"  # where ssl = true would turn on TLS that verifies nothing

_GROUPS: dict[str, type] = {
    "sanderling": General,
    "records": Records,
    "secrets": Secrets,
    "coordination": Coordination,
    "images": Images,
    "bus": Bus,
    "api": Api,
    "conductor": Conductor,
    "iscsi_worker": Worker,
    "leader": Leader,
    "statistics": Statistics,
    "notifications": Notifications,
    "tracing": Tracing,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """All groups. Made with a value out of bounds, or with two that contradict each other, it raises `SettingsRefused`."""

    sanderling: General = field(default_factory=General)
    records: Records = field(default_factory=Records)
    secrets: Secrets = field(default_factory=Secrets)
    coordination: Coordination = field(default_factory=Coordination)
    images: Images = field(default_factory=Images)
    bus: Bus = field(default_factory=Bus)
    api: Api = field(default_factory=Api)
    conductor: Conductor = field(default_factory=Conductor)
    iscsi_worker: Worker = field(default_factory=Worker)
    leader: Leader = field(default_factory=Leader)
    statistics: Statistics = field(default_factory=Statistics)
    notifications: Notifications = field(default_factory=Notifications)
    tracing: Tracing = field(default_factory=Tracing)

    def __post_init__(self) -> None:
        for group, kind in _GROUPS.items():
            _check_bounds(group, kind, getattr(self, group))
        _check_sense(self)


def options() -> list[tuple[str, list[cfg.Opt]]]:
    """Every option by group, for registration and for the generated sample (entry point oslo.config.opts)."""
    return [(group, [_option(entry) for entry in fields(kind)]) for group, kind in _GROUPS.items()]


def load(argv: Sequence[str] = (), *, files: Sequence[str] | None = None) -> Settings:
    """Read the ini files and the environment (`OS_<GROUP>__<OPTION>`); `SettingsRefused` names the option at fault.

    Without `files` the first of $SANDERLING_CONFIG, ./sanderling.conf and /etc/sanderling/sanderling.conf that exists is read.
    """
    conf = cfg.CONF
    for group, opts in options():
        conf.register_opts(opts, group=group)
    read = list(files) if files is not None else found()
    named = " ".join(argv) or ", ".join(read)
    try:
        conf(list(argv), project="sanderling", default_config_files=read)
        if _BESIDE in conf.list_all_sections():
            raise SettingsRefused(f"[{_BESIDE}]: what is set there is not what is used; [bus] has all there is to set")
        values = {group: _frozen(conf, group, kind) for group, kind in _GROUPS.items()}
    except cfg.ConfigFileParseError as error:  # whose text shows the line, which may hold a password
        why = error.__context__
        assert isinstance(why, cfg.ParseError), "oslo.config says where"
        raise SettingsRefused(f"settings: {why.filename}:{why.lineno} cannot be parsed: {why.msg}; mend that line") from None
    except OSError as error:
        raise SettingsRefused(f"settings: {named} cannot be read: {error.strerror}; name a file that can") from error
    except UnicodeDecodeError:  # which holds the whole file
        raise SettingsRefused(f"settings: {named} is not text in UTF-8; store it as such") from None
    except (cfg.Error, ValueError) as error:
        raise SettingsRefused(f"settings: {error}") from error
    return Settings(**values)


def found() -> list[str]:
    """The ini file that `load` reads when it is given none; empty when there is none."""
    named = os.environ.get("SANDERLING_CONFIG")
    if named:
        return [named]
    return [str(path) for path in (Path("sanderling.conf"), Path("/etc/sanderling/sanderling.conf")) if path.exists()][:1]


def _option(entry: Any) -> cfg.Opt:
    meta = entry.metadata
    assert entry.default is not MISSING
    common = {"default": entry.default, "help": meta["help"], "secret": meta["secret"]}
    if entry.name == "node":
        common["sample_default"] = "<the host's name>"
    if isinstance(entry.default, int):
        return cfg.IntOpt(entry.name, min=meta["least"], **common)
    if isinstance(entry.default, float):
        return cfg.FloatOpt(entry.name, min=meta["least"], **common)
    return cfg.StrOpt(entry.name, choices=meta["choices"], **common)


def _frozen(conf: cfg.ConfigOpts, group: str, kind: type) -> Any:
    return kind(**{entry.name: _value(conf, group, entry.name) for entry in fields(kind)})


def _value(conf: cfg.ConfigOpts, group: str, name: str) -> Any:
    try:
        return getattr(getattr(conf, group), name)
    except (cfg.NoSuchOptError, cfg.NoSuchGroupError, RecursionError):  # of which the first two show what follows the $
        raise SettingsRefused(f"[{group}] {name}: has a $ that names no other option; write $$ where you mean a $") from None


def _check_bounds(group: str, kind: type, values: Any) -> None:
    for entry in fields(kind):
        least, choices, value = entry.metadata["least"], entry.metadata["choices"], getattr(values, entry.name)
        if least is not None and value < least:
            raise SettingsRefused(f"[{group}] {entry.name}: {value} is less than {least}; set it to {least} or more")
        if choices and value not in choices:
            raise SettingsRefused(f"[{group}] {entry.name}: {value!r} is not one of {', '.join(choices)}")


def _check_sense(settings: Settings) -> None:
    coordination, worker, leader = settings.coordination, settings.iscsi_worker, settings.leader
    if len(settings.sanderling.node) > NODE_MAX:
        raise SettingsRefused(f"[sanderling] node: is longer than {NODE_MAX} characters; give this machine a shorter name")
    if settings.images.backend == "files" and coordination.backend == "consul":
        raise SettingsRefused(
            "[images] backend: files has no fence that reaches another host, so it cannot be used with Consul; use rbd"
        )
    if settings.secrets.require_signed == "on" and not settings.secrets.key_file:
        raise SettingsRefused("[secrets] require_signed: without a key_file nothing is signed; name one, or set it to off")
    _check_tls(settings.bus, coordination, settings.api)
    if settings.conductor.move_settle_s <= worker.move_intent_s + worker.move_drain_s:
        raise SettingsRefused(
            "[conductor] move_settle_s: must be more than move_intent_s + move_drain_s of [iscsi_worker], or a move that was "
            "recorded as failed could still happen"
        )
    _check_worker(worker, coordination)
    if not settings.records.idle_timeout_s < settings.records.busy_timeout_s < settings.records.statement_timeout_s:
        raise SettingsRefused(
            "[records] busy_timeout_s: must be more than idle_timeout_s, or one process that hangs stops all others, and less "
            "than statement_timeout_s, or no write can wait for so long"
        )
    _check_tracing(settings.tracing)
    if leader.renew_interval_s * 2 > leader.lease_s:
        raise SettingsRefused("[leader] renew_interval_s: must be at most half of lease_s, or one late turn ends a leadership")
    if leader.lease_s >= leader.check_ttl_s + leader.lock_delay_s:
        raise SettingsRefused("[leader] lease_s: must be less than check_ttl_s + lock_delay_s, or two could lead at once")


def _check_tracing(tracing: Tracing) -> None:
    if tracing.sample_ratio > 1:
        raise SettingsRefused(f"[tracing] sample_ratio: {tracing.sample_ratio:g} is more than 1, which records every trace")
    parts = urlsplit(tracing.endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise SettingsRefused("[tracing] endpoint: write http://HOST:PORT/v1/traces or https://…, without user and password")
    if (parts.scheme == "https") != bool(tracing.ca_file):
        raise SettingsRefused("[tracing] endpoint, ca_file: https without a CA verifies nothing, a CA without https does nothing")


def _check_tls(bus: Bus, coordination: Coordination, api: Api) -> None:
    """What looks on and would verify nothing. The files themselves are looked at where they are used (sanderling/tls.py)."""
    if coordination.url.startswith("https://") and not coordination.ca_file:
        raise SettingsRefused("[coordination] ca_file: an https URL without a CA verifies nothing; name the CA's file")
    for option in ("ca_file", "cert_file"):
        if getattr(coordination, option) and not coordination.url.startswith("https://"):
            raise SettingsRefused(
                f"[coordination] {option}: the URL is not https, so nothing is verified; mend the URL or leave it out"
            )
    if re.search(r"[?&]ssl", bus.url):
        raise SettingsRefused("[bus] url: TLS by URL parameter verifies nothing; set [bus] ca_file instead")
    if bus.ca_file and not bus.url.startswith("rabbit://"):
        raise SettingsRefused("[bus] ca_file: only rabbit:// speaks TLS; leave it out, or mend the URL")
    if bus.cert_file and not bus.ca_file:
        raise SettingsRefused("[bus] cert_file: without ca_file there is no TLS, and nobody sees it; set ca_file too")
    for group, certified in (("bus", bus), ("coordination", coordination)):
        if bool(certified.cert_file) != bool(certified.key_file):
            raise SettingsRefused(f"[{group}] cert_file, key_file: one without the other proves nothing; set both or none")
    if bool(api.tls_cert) != bool(api.tls_key):
        raise SettingsRefused("[api] tls_cert, tls_key: one without the other serves no TLS; set both or none")
    if api.tls_client_ca and not api.tls_cert:
        raise SettingsRefused(
            "[api] tls_client_ca: without tls_cert there is no TLS, and nobody is asked; set tls_cert and tls_key"
        )


def _check_worker(worker: Worker, coordination: Coordination) -> None:
    if worker.store_ask_interval_s + 2 * worker.store_ask_timeout_s > worker.store_believed_s:
        raise SettingsRefused(
            "[iscsi_worker] store_believed_s: must be at least store_ask_interval_s + two store_ask_timeout_s, or every "
            "answer of the image store is too old to count"
        )
    if worker.store_silent_s <= coordination.check_ttl_s:
        raise SettingsRefused(
            "[iscsi_worker] store_silent_s: must be more than [coordination] check_ttl_s, or a gateway gives up its exports "
            "on the word of one that is dead"
        )
    if worker.store_silent_s < 2 * worker.store_believed_s:
        raise SettingsRefused(
            "[iscsi_worker] store_silent_s: must be at least two store_believed_s, or a gateway gives up its exports before the "
            "others have noticed that the image store is away for them as well"
        )
    if worker.renew_interval_s * 2 > worker.lease_s:
        raise SettingsRefused("[iscsi_worker] renew_interval_s: must be at most half of lease_s, or one late turn stops I/O")
    if worker.lease_s > coordination.check_ttl_s:
        raise SettingsRefused(
            "[iscsi_worker] lease_s: longer than [coordination] check_ttl_s: a dead worker's export would go on after another "
            "may take it; lower it"
        )
    if worker.address_lifetime_s < 2 * worker.renew_interval_s + 1:
        raise SettingsRefused("[iscsi_worker] address_lifetime_s: must be more than two renew_interval_s, or addresses flap")
    if coordination.check_ttl_s < 2 * worker.renew_interval_s:
        raise SettingsRefused("[coordination] check_ttl_s: must be at least two renew_interval_s, or live workers are replaced")
