"""Ceph: that it can be reached as the configured user, that the pool can be used, and that this user may fence."""

import errno
import json
import math
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

from cli.doctor.base import Check, Finding, Role, fail, ok, warn
from sanderling.clock import Clock
from sanderling.settings import Images, Settings

USING: Final = frozenset({Role.API, Role.CONDUCTOR, Role.WORKER})
FIX: Final = (
    "see [images] ceph_conf and ceph_user, that this user may read the keyring, and that a quorum of monitors runs: ceph -s"
)
NOBODY: Final = "192.0.2.1:0/1"  # an address for documentation: no client has it
FENCED_S: Final = 1.0


class Cluster(Protocol):
    def command(self, **words: object) -> tuple[int, str]:
        """A command to the monitors: 0 or an error number, and what it answered."""
        ...

    def write_and_read(self, pool: str, name: str) -> int:
        """An object in the pool, written, read and removed again; 0 or an error number."""
        ...

    def close(self) -> None: ...


class Unreached(Exception):
    """There is no connection; the text says why and holds no secret."""


def checks(settings: Settings, file: str | None, *, clock: Clock) -> Sequence[Check]:  # noqa: ARG001
    own = settings.images
    if own.backend == "files":
        return [Check("images", lambda: look_at_folder(Path(own.folder)), "see [images] folder", USING)]
    return [Check("ceph", lambda: look(own, connect=lambda: RadosCluster(own)), FIX, USING)]


def look_at_folder(folder: Path) -> Iterable[Finding]:
    if not folder.is_dir():
        yield fail("images", f"there is no folder {folder}", f"mkdir -p {folder}")
        return
    yield ok("images", f"{folder}, {shutil.disk_usage(folder).free >> 20} MiB free")


def look(own: Images, *, connect: Callable[[], Cluster]) -> Iterable[Finding]:
    if not Path(own.ceph_conf).is_file():
        fix = "copy it from a host of the Ceph cluster, or name it in [images] ceph_conf"
        yield fail("ceph", f"there is no file {own.ceph_conf}", fix)
        return
    try:
        cluster = connect()
    except Unreached as error:
        yield fail("ceph", f"no connection as client.{own.ceph_user} with {own.ceph_conf}: {error}", FIX)
        return
    try:
        yield _health(cluster)
        yield _pool(cluster, own.pool)
        yield _data(cluster, own)
        yield _fence(cluster, own)
    finally:
        cluster.close()


def _health(cluster: Cluster) -> Finding:
    code, said = cluster.command(prefix="health", format="json")
    if code:
        return warn("ceph health", f"it may not be asked for ({_name(code)})", "give the user mon 'profile rbd'")
    health = json.loads(said)
    checks = [str(check.get("summary", {}).get("message", name)) for name, check in health.get("checks", {}).items()]
    seen = "; ".join([str(health.get("status")), *checks[:5]])
    match health.get("status"):
        case "HEALTH_OK":
            return ok("ceph health", seen)
        case "HEALTH_WARN":
            return warn("ceph health", seen, "ceph health detail")
    return fail("ceph health", seen, "ceph health detail")


def _pool(cluster: Cluster, pool: str) -> Finding:
    code, said = cluster.command(prefix="osd pool application get", pool=pool, format="json")
    if code == errno.ENOENT:
        return fail("ceph pool", f"there is no pool {pool}", f"ceph osd pool create {pool} && rbd pool init {pool}")
    if code:
        return warn("ceph pool", f"what {pool} is for may not be asked ({_name(code)})", "give the user mon 'profile rbd'")
    if "rbd" not in json.loads(said or "{}"):
        return warn("ceph pool", f"{pool} is not prepared for RBD images", f"rbd pool init {pool}")
    return ok("ceph pool", f"{pool}, prepared for RBD images")


def _data(cluster: Cluster, own: Images) -> Finding:
    code = cluster.write_and_read(own.pool, f"sanderling.doctor.{uuid.uuid4()}")
    if code:
        return fail("ceph data", f"no object can be written and read in pool {own.pool}: {_name(code)}", _caps(own))
    return ok("ceph data", f"client.{own.ceph_user} can write and read in pool {own.pool}")


def _fence(cluster: Cluster, own: Images) -> Finding:
    """Fences for a second what is nobody's: no list of rights says as surely that it may be done."""
    code, _ = cluster.command(prefix="osd blocklist", blocklistop="add", addr=NOBODY, expire=FENCED_S)
    if code:
        seen = (
            f"client.{own.ceph_user} may not add to the blocklist ({_name(code)}): no export of a lost node could be taken over"
        )
        return fail("ceph fence", seen, _caps(own))
    return ok("ceph fence", f"client.{own.ceph_user} may add to the blocklist")


def _caps(own: Images) -> str:
    return f"ceph auth caps client.{own.ceph_user} mon 'profile rbd' osd 'profile rbd pool={own.pool}'"


def _name(code: int) -> str:
    return errno.errorcode.get(code, str(code))


class RadosCluster:
    """By librados; each call within the bounds that the settings give it."""

    def __init__(self, own: Images) -> None:
        try:
            import rados  # noqa: PLC0415  from Debian's packages, which may be what is missing
        except ImportError as error:
            raise Unreached(
                "Python's rados is not there: install python3-rados, and make .venv with the system's packages"
            ) from error
        self._rados = rados
        bounds = {
            "client_mount_timeout": str(math.ceil(own.connect_timeout_s)),
            "rados_mon_op_timeout": str(math.ceil(own.connect_timeout_s)),
            "rados_osd_op_timeout": str(math.ceil(own.connect_timeout_s)),
        }
        try:
            self._cluster = rados.Rados(conffile=own.ceph_conf, rados_id=own.ceph_user, conf=bounds)
            self._cluster.connect()
        except rados.Error as error:
            raise Unreached(str(error)) from error

    def command(self, **words: object) -> tuple[int, str]:
        code, out, _ = self._cluster.mon_command(json.dumps(words), b"")
        return abs(code), out.decode()

    def write_and_read(self, pool: str, name: str) -> int:
        try:
            with self._cluster.open_ioctx(pool) as objects:
                objects.write_full(name, b"sanderling")
                try:
                    objects.read(name)
                finally:
                    objects.remove_object(name)
        except self._rados.Error as error:
            return abs(int(getattr(error, "errno", 0) or errno.EIO))
        return 0

    def close(self) -> None:
        self._cluster.shutdown()
