"""What goes wrong in a simulation, drawn from its random seed: each fault with the time it lasts, and how it is mended."""

from collections import Counter
from typing import TYPE_CHECKING, Final

from sanderling.coordination.embedded import EmbeddedCoordination
from tests.simulation.seams import BUS, CEPH, COORDINATION, FRONT

if TYPE_CHECKING:
    from tests.simulation.world import World

PARTS: Final = (COORDINATION, CEPH, BUS, FRONT)
FAULTS: Final = {
    "crash": 6,
    "crash node": 2,
    "stop": 4,
    "crash target": 2,
    "pause": 6,
    "cut": 6,
    "cut all": 2,
    "session lost": 2,
    "clock jump": 1,
    "weather": 3,
    "coordination lost": 1,
}


class Faults:
    """`strike` goes on until told to stop; `mend` leaves nothing broken. Each schedule knows some kinds of faults only: what two
    of them do together is found sooner without the others.
    """

    def __init__(self, world: "World", *, every_s: float) -> None:
        self.world, self.rng, self._every_s = world, world.rng, every_s
        self._weights = {fault: weight for fault, weight in FAULTS.items() if self.rng.random() < 0.5} or FAULTS
        self.struck = Counter[str]()
        self.stopped = False

    def strike(self) -> None:
        if self.rng.random() < 0.6:
            self._weather()
        while not self.stopped:
            self.world.scheduler.sleep(self.rng.expovariate(1 / self._every_s))
            if self.stopped:
                return
            fault = self.rng.choices(list(self._weights), list(self._weights.values()))[0]
            self.struck[fault] += 1
            getattr(self, f"_{fault.replace(' ', '_')}")()

    def mend(self) -> None:
        self.stopped = True
        weather = self.world.weather
        weather.loss = weather.doubled = weather.replayed = weather.late = weather.slow = weather.answers_lost = 0.0
        for name, place in list(self.world.places.items()):
            place.cuts.clear()
            if place.process.is_paused:
                self.world.scheduler.resume(place.process)
            if place.process.is_dead:
                self.world.start(name)

    def _later(self, seconds: float, name: str, what: str) -> None:
        """Undo it then, if the same process is still concerned."""
        process = self.world.places[name].process

        def undo() -> None:
            place = self.world.places[name]
            if what == "start" and place.process.is_dead and place.process is process:
                self.world.start(name)
            elif what == "resume" and place.process is process and process.is_paused and not process.is_dead:
                self.world.scheduler.resume(process)
            elif what in PARTS:
                place.cuts.discard(what)

        self.world.scheduler.after(seconds, undo)

    def _length_s(self) -> float:
        """Mostly short, sometimes longer than every lease and time limit."""
        return self.rng.choice([0.3, 1.0, 3.0, 8.0, 20.0]) * self.rng.uniform(0.5, 1.5)

    def _anybody(self) -> str:
        return self.rng.choice(sorted(self.world.starts))

    def _crash(self) -> None:
        name = self._anybody()
        if not self.world.places[name].process.is_dead:
            self.world.kill(name)
            self._later(self._length_s(), name, "start")

    def _stop(self) -> None:
        name = self._anybody()
        if not self.world.places[name].process.is_dead:
            self.world.end(name, away_s=self._length_s())

    def _crash_node(self) -> None:
        """With all that ran there; what it had sent is on its way all the same."""
        node = self.rng.choice(list(self.world.nodes.values()))
        if node.place.process.is_dead:
            return
        self.world.kill(node.name)
        for export in list(node.memory.processes):
            node.targets.crash(export)
        for address in node.addresses.lent():
            node.addresses.remove(address)
        (self.world.folder / node.name / "consul_session").unlink(missing_ok=True)
        self._later(self._length_s(), node.name, "start")

    def _crash_target(self) -> None:
        running = [(node, export) for node in self.world.nodes.values() for export in sorted(node.memory.processes)]
        if running:
            node, export = self.rng.choice(running)
            node.targets.crash(export)

    def _pause(self) -> None:
        name = self._anybody()
        process = self.world.places[name].process
        if not process.is_dead and not process.is_paused:
            self.world.scheduler.pause(process)
            self._later(self._length_s(), name, "resume")

    def _cut(self) -> None:
        name = self._anybody()
        part = self.rng.choice(PARTS)
        self.world.places[name].cuts.add(part)
        self._later(self._length_s(), name, part)

    def _cut_all(self) -> None:
        name, length_s = self.rng.choice(sorted(self.world.nodes)), self._length_s()
        for part in PARTS:
            self.world.places[name].cuts.add(part)
            self._later(length_s, name, part)

    def _session_lost(self) -> None:
        sessions = sorted({entry.consul_session for entry in self.world.coordination.list("").entries if entry.consul_session})
        if sessions:
            self.world.coordination.close_session(self.rng.choice(sessions))

    def _clock_jump(self) -> None:
        self.world.jump(self.rng.choice([-3600.0, -10.0, 10.0, 3600.0]))

    def _weather(self) -> None:
        weather, rng = self.world.weather, self.rng
        weather.loss, weather.doubled, weather.replayed = (rng.choice([0.0, 0.1, often]) for often in (0.5, 0.3, 0.5))
        weather.late, weather.slow, weather.answers_lost = (rng.choice([0.0, often]) for often in (0.2, 0.05, 0.05))

    def _coordination_lost(self) -> None:
        """It comes back empty, knowing no session."""
        self.world.coordination = EmbeddedCoordination(clock=self.world.clock)
