"""One schedule: an installation, its users and its faults, all from one random seed, until everything is mended and at rest."""

import gc
import logging
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from sanderling.clock import SystemClock
from sanderling.records.database import Records
from sanderling.settings import Records as RecordsSettings
from tests.house import migrated
from tests.simulation.faults import Faults
from tests.simulation.invariants import Violated
from tests.simulation.people import Initiators, Operator
from tests.simulation.threads import Stuck, installed
from tests.simulation.world import World

SHORT_S: Final = (2.0, 12.0)
LONG_S: Final = (12.0, 60.0)
LONG_EVERY: Final = 5  # schedules: short ones find most, for less
REST_MOST_S: Final = 400.0
LOOK_EVERY_S: Final = 2.0
CALM_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a schedule. `violation` is empty when every invariant held."""

    seed: int
    simulated_s: float
    steps: int
    accepted: int
    written: int
    struck: Mapping[str, int]
    asked: Mapping[str, int]
    operations: Mapping[str, int]
    moves: Mapping[str, int]
    violation: str = ""


class Ground:
    """What schedules run on, one after the other: a folder, and records that each finds empty. The engine stays, since making one
    ready costs more than a schedule does.
    """

    def __init__(self, folder: Path) -> None:
        self._template, self._file = migrated(folder / "template.sqlite"), folder / "records.sqlite"
        self.folder = folder / "run"
        self.records = Records(RecordsSettings(url=f"sqlite:///{self._file}", pool_size=64), clock=SystemClock())

    def clear(self) -> None:
        self.records.close()
        for suffix in ("", "-wal", "-shm"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)
        shutil.copy(self._template, self._file)
        shutil.rmtree(self.folder, ignore_errors=True)


def run(seed: int, ground: Ground, *, trace: Callable[[str], None] | None = None) -> Outcome:
    """The same seed always gives the same schedule, under one PYTHONHASHSEED and one release."""
    ground.clear()
    gc.disable()  # a schedule leaves little behind, and looking for that all the time is a third of its price
    world = World(seed, ground.folder, ground.records)
    with _reproducible(seed), installed(world.scheduler):
        world.build()
        operator, initiators = Operator(world), Initiators(world)
        faults = Faults(world, every_s=world.rng.choice([0.7, 2.0, 6.0]))
        _log_to(world, trace)
        violation = ""
        try:
            _storm(world, seed, operator, initiators, faults)
            violation = _rest(world)
        except Violated as found:
            violation = str(found)
        except Stuck as stuck:
            violation = f"stuck: {stuck}"
        finally:
            world.scheduler.on_step = lambda: None
            simulated_s = world.scheduler.now
            ends = world.ends("operations"), world.ends("moves")
            world.close()
            gc.enable()
    steps, accepted, written = world.scheduler.steps, len(world.accepted), initiators.written
    return Outcome(seed, simulated_s, steps, accepted, written, faults.struck, world.asked, *ends, violation=violation)


def _storm(world: World, seed: int, operator: Operator, initiators: Initiators, faults: Faults) -> None:
    for name, act in (("operator", operator.work), ("initiators", initiators.follow), ("faults", faults.strike)):
        world.scheduler.spawn(world.outside, name, act)
    world.scheduler.run(world.rng.uniform(*(LONG_S if seed % LONG_EVERY == 0 else SHORT_S)))
    operator.stopped = True
    faults.mend()


def _rest(world: World) -> str:
    """Wait until all is as it must be, and stays so; what is not, when it takes too long."""
    began, calm_since = world.scheduler.now, None
    while True:
        world.scheduler.run(world.scheduler.now + LOOK_EVERY_S)
        now, unrest = world.scheduler.now, world.watch.unrest()
        calm_since = None if unrest else calm_since or now
        if calm_since is not None and now - calm_since >= CALM_S:
            return ""
        if now - began > REST_MOST_S:
            return "; ".join(unrest) or "I5 it comes to no rest"


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Identifiers come from the seed, too."""
    source, before = random.Random(seed ^ 0x5EED), os.urandom
    os.urandom = source.randbytes
    random.seed(seed)
    try:
        yield
    finally:
        os.urandom = before


def _log_to(world: World, trace: Callable[[str], None] | None) -> None:
    """A failure that the code does not know ends the schedule; everything is traced if that is asked for."""

    def look(_logger: Any, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        task = world.scheduler.task
        if trace is not None:
            said = {name: value for name, value in event.items() if name not in {"event", "exc_info"}}
            trace(f"{world.scheduler.now:9.3f} {task.process.name if task else '':8} {method:8} {event['event']} {said}")
        if event.get("exc_info") and not (task and task.process.is_dead):
            world.watch.violated(f"unforeseen: {event['event']}: {_error(event)}")
        raise structlog.DropEvent

    least = logging.DEBUG if trace else logging.ERROR
    structlog.configure(
        processors=[look], wrapper_class=structlog.make_filtering_bound_logger(least), cache_logger_on_first_use=False
    )


def _error(event: Mapping[str, Any]) -> str:
    error = sys.exc_info()[1]
    if error is None:
        return repr(event)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
