"""Every process's work in one process, on the embedded backends: what `sanderling up` runs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import iscsi_worker.addresses
import iscsi_worker.targets
import rpc.news
import rpc.oslo
import sanderling.coordination
import sanderling.images
from api.app import create_app
from api.server import HttpServer
from cli.access import Access, own_file, read, write
from cli.grants import grant
from conductor.server import Conductor
from iscsi_worker.worker import Worker
from leader.server import duties
from leader.service import Candidate
from sanderling import secrets as keys
from sanderling.clock import SystemClock
from sanderling.errors import Malformed
from sanderling.model.leaders import CLUSTER as SERVICE
from sanderling.records import tokens
from sanderling.records.database import Records
from sanderling.settings import Api, Bus, Coordination, General, Images, Secrets, Settings
from sanderling.settings import Conductor as ConductorSettings
from sanderling.settings import Records as RecordsSettings
from sanderling.settings import Worker as WorkerSettings

TOKEN = "up"  # noqa: S105  the token's name


def settings_of(folder: Path, port: int) -> Settings:
    return Settings(
        sanderling=General(runtime_dir=str(folder / "run"), log_format="console"),
        records=RecordsSettings(url=f"sqlite:///{folder / 'records.sqlite'}"),
        secrets=Secrets(key_file=str(folder / "secrets.key")),
        coordination=Coordination(backend="embedded"),
        images=Images(backend="files", folder=str(folder / "images")),
        bus=Bus(url="fake://"),
        api=Api(port=port),
        conductor=ConductorSettings(republish_interval_s=1.0),  # coordination is in memory: each start finds it lost
        iscsi_worker=WorkerSettings(addresses="loopback"),
    )


@contextlib.contextmanager
def running(settings: Settings, folder: Path) -> Iterator[Access]:
    """Every process's work as threads of this one, started in order and stopped in reverse."""
    clock = SystemClock()
    key_file = Path(settings.secrets.key_file)
    if not key_file.exists():
        keys.add(key_file)
    with contextlib.ExitStack() as stack:
        records = Records(settings.records, clock=clock)
        stack.callback(records.close)
        records.migrate()
        coordination = sanderling.coordination.connect(settings, clock=clock)
        stack.callback(coordination.close)
        images = sanderling.images.connect(settings, clock=clock)
        stack.callback(images.close)
        bus = rpc.oslo.connect(settings)
        stack.callback(bus.close)
        news = rpc.news.connect(settings)
        stack.callback(news.close)
        targets = iscsi_worker.targets.connect(settings, clock=clock)
        app = create_app(settings, records=records, coordination=coordination, images=images, bus=bus, news=news, clock=clock)
        server = HttpServer(app, settings.api)
        server.start()
        stack.callback(server.stop)
        conductor = Conductor(
            settings, records=records, coordination=coordination, images=images, bus=bus, news=news, clock=clock
        )
        conductor.start()
        stack.callback(conductor.stop)
        worker = Worker(
            settings,
            coordination=coordination,
            images=images,
            bus=bus,
            targets=targets,
            addresses=iscsi_worker.addresses.connect(settings),
            clock=clock,
        )
        worker.start()
        stack.callback(worker.stop)
        own = duties(settings, records=records, coordination=coordination, images=images, clock=clock)
        candidate = Candidate(SERVICE, own, settings, coordination=coordination, clock=clock)
        candidate.start()
        stack.callback(candidate.stop)
        yield _access(records, folder, server.url)


def _access(records: Records, folder: Path, url: str) -> Access:
    """The token of last time if it is still good, else a new one; written here and where the command line looks by itself."""
    file = folder / "client.json"
    access = Access(url, _known(records, file) or grant(records, TOKEN, replace=True), by_up=True)
    write(file, access)
    if _may_write(own_file()):
        with contextlib.suppress(OSError):  # a home that cannot be written: the file in the folder does as well
            write(own_file(), access)
    return access


def _known(records: Records, file: Path) -> str | None:
    try:
        secret = read(file).token
    except (FileNotFoundError, Malformed):
        return None
    with records.read() as session:
        return secret if tokens.authenticate(session, secret, now=records.now()) else None


def _may_write(file: Path) -> bool:
    """Not over the client file of another service."""
    try:
        return read(file).by_up
    except FileNotFoundError:
        return True
    except Malformed:
        return False
