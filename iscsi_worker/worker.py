"""The worker of one storage node: one short loop that looks, decides and hands each export's action to a lane.

Lanes do what may take long, one action at a time for each export; the loop itself never waits for them.
"""

import math
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

import structlog

import iscsi_worker.claims
import iscsi_worker.reach
from iscsi_worker import metrics
from iscsi_worker.addresses.base import Addresses
from iscsi_worker.claims import Claims
from iscsi_worker.decisions import (
    Action,
    Activate,
    Drop,
    Local,
    Waiting,
    decide,
    free_placed,
    named,
    prepared_here,
    unserved,
    wait_on,
)
from iscsi_worker.endpoints.exports import endpoint
from iscsi_worker.exports import Exports
from iscsi_worker.image_store import ImageStore, Pulse, Touched
from iscsi_worker.intents import Intents, Told
from iscsi_worker.lanes import Grounds, Lanes, Under
from iscsi_worker.leases import Lease, Leases, every
from iscsi_worker.membership import Membership
from iscsi_worker.moves import Moves
from iscsi_worker.neighbours import Neighbours
from iscsi_worker.reports import Reports
from iscsi_worker.service import Seams, Service
from iscsi_worker.targets.base import Running, Targets
from iscsi_worker.view import View
from iscsi_worker.watch import Watch
from rpc import topics
from rpc.bus import Bus, Serving
from rpc.signing import Signing
from sanderling.clock import Clock
from sanderling.coordination.base import Coordination
from sanderling.errors import Problem, SessionLost, Unavailable
from sanderling.images.base import Images
from sanderling.model.exports import ExportId, Gateway
from sanderling.model.fronts import REASON_STORE
from sanderling.secrets import Keyring
from sanderling.settings import Settings

log = structlog.get_logger(__name__)

VERSION: Final = version("sanderling")


@dataclass(frozen=True, slots=True)
class Turned:
    """The last turn: what ran then, how many actions had ended, and which exports were not to be tried again yet."""

    running: Mapping[ExportId, Running] = field(default_factory=dict)
    ended: int = 0
    held_back: frozenset[ExportId] = frozenset()


class Worker:
    """Takes, serves and gives up exports from `start` to `stop`; needs the coordination store to take, not to go on serving."""

    def __init__(
        self,
        settings: Settings,
        *,
        coordination: Coordination,
        images: Images,
        bus: Bus,
        targets: Targets,
        addresses: Addresses,
        clock: Clock,
        touched: Touched | None = None,
    ) -> None:
        """`touched` is the image store once more, by a connection with short bounds, to ask whether it answers."""
        own = settings.iscsi_worker
        seams = Seams(coordination, images, targets, addresses)
        self._settings, self._own, self._clock = settings, own, clock
        self._node = settings.sanderling.node
        self._bus, self._targets, self._addresses = bus, targets, addresses
        keyring = Keyring(settings.secrets)
        self._signing = Signing(settings.secrets, keyring, clock=clock)
        self._reports = Reports(bus, self._node, own, clock=clock)
        self._service = Service(
            own,
            seams,
            self._reports,
            keyring=keyring,
            certain=lambda: self._membership.is_certain,
            clock=clock,
        )
        self._images = images
        self._watch = Watch(settings, coordination, on_change=self._changed, clock=clock)
        self._pulse = Pulse(touched or images, own, clock=clock)
        self._membership = Membership(settings, coordination, clock=clock)
        self._leases = Leases(
            own,
            seams,
            proven_until=self._membership.proven_until,
            on_change=self.wake,
            on_answer=self._pulse.heard,
            store_answers=self._store_answers,
            clock=clock,
        )
        self._neighbours = self._asking_neighbours()
        self._image_store = self._asking_the_image_store()
        self._intents = Intents(own, self._watch, wake=self.wake, clock=clock)
        self._lanes = self._acting(seams)
        self._lock = threading.Lock()  # guards the one below
        self._news: frozenset[str] | None = None  # the keys that changed since the loop last looked, when nothing else did
        self._turned: Turned | None = None  # unless it failed
        self._turn_due = -math.inf
        self._covered: Collection[ExportId] = ()
        self._waiting: dict[ExportId, Waiting] = {}
        self._is_view_doubted = False
        self._view_session = ""  # that the view was read with
        self._ran: set[ExportId] = set()
        self._unserved: dict[ExportId, float] = {}  # since when nobody is seen to serve what was served before
        self._awake = threading.Event()
        self._stopping = threading.Event()
        self._withdrawing = False
        self._withdrawn = threading.Event()
        self._serving: Serving | None = None
        self._threads: dict[str, threading.Thread] = {}
        self._locks, self._cut_off = metrics.Locks(), metrics.CutOff()

    def _acting(self, seams: Seams) -> Lanes:
        node, own, clock, parts = self._node, self._own, self._clock, (self._service, self._reports)
        return Lanes(
            own,
            Exports(node, own, seams, *parts, store_is_silent=lambda: self._pulse.is_silent, clock=clock),
            Moves(node, own, seams, *parts, saw=self._watch.saw, clock=clock),
            membership=self._membership,
            intents=self._intents,
            watch=self._watch,
            on_end=self.wake,
            clock=clock,
        )

    def _asking_neighbours(self) -> Neighbours:
        own, clock = self._own, self._clock
        return Neighbours(
            self._node,
            own,
            iscsi_worker.reach.connect(own.addresses, clock=clock),
            Claims(
                self._node,
                iscsi_worker.claims.connect(own.addresses),
                self._addresses,
                view=lambda: self._watch.latest,
                certain=lambda: self._membership.is_certain,
                clock=clock,
            ),
            view=lambda: self._watch.latest,
            on_change=self.wake,
            clock=clock,
        )

    def _asking_the_image_store(self) -> ImageStore:
        return ImageStore(
            self._node,
            self._own,
            self._pulse,
            view=lambda: self._watch.latest,
            certain=lambda: self._membership.is_certain,
            on_change=self.wake,
            clock=self._clock,
        )

    def start(self) -> None:
        """Begin; returns at once. A broker or a coordination store that is away is waited for in the background."""
        self._reports.start()
        self._cover({one.export: one for one in self._targets.actual()})  # a dead worker's leases are running out
        interval = self._own.renew_interval_s
        turns = {
            "watch": lambda: self._watch.follow(self._stopping),
            "sweep": lambda: every(interval, self._watch.sweep, self._stopping, self._clock),
            "feed": lambda: every(interval, self._membership.feed, self._stopping, self._clock),
            "prove": lambda: every(interval, self._membership.prove, self._stopping, self._clock),
            "renew": lambda: every(interval, self._leases.extend, self._stopping, self._clock),
            "neighbours": lambda: every(self._own.front_probe_interval_s, self._neighbours.turn, self._stopping, self._clock),
            "pulse": lambda: every(self._own.store_ask_interval_s, self._pulse.ask, self._stopping, self._clock),
            "image store": lambda: every(self._own.store_ask_interval_s, self._image_store.turn, self._stopping, self._clock),
            "ends": self._watch_ends,
            "announce": lambda: self._service.announcements.follow(self._stopping),
            "reconcile": self._reconcile,
            "listen": self._listen,
        }
        for name, target in turns.items():
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads[name] = thread

    def stop(self) -> None:
        """Give every export up in order, then stop, bounded."""
        self._withdrawing = True
        self.wake()
        if not self._clock.wait(self._withdrawn, self._own.withdraw_timeout_s):
            log.error("stopping although exports are not given up; they end by their leases")
        self._stopping.set()
        self._watch.stop()
        self.wake()
        if self._serving:
            self._serving.stop()
        bound_s = self._settings.coordination.request_timeout_s
        self._threads["reconcile"].join(bound_s)
        self._lanes.stop()
        self._leases.stop()
        if self._withdrawn.is_set():
            self._leave()  # which also ends the wait of the thread that watches
        for thread in self._threads.values():
            thread.join(bound_s)
        self._reports.stop(timeout_s=self._settings.bus.stop_timeout_s)

    def wake(self) -> None:
        """Make the loop turn now: anything may be different."""
        self._changed(None)

    def _changed(self, keys: Collection[str] | None) -> None:
        """Make the loop look at these keys now; at everything when None."""
        with self._lock:
            self._news = None if keys is None or self._news is None else self._news | frozenset(keys)
        self._awake.set()

    def _watch_ends(self) -> None:
        """Turn the loop as soon as a process has ended."""
        while not self._stopping.is_set():
            try:
                if self._targets.wait_for_end(timeout_s=self._own.renew_interval_s):
                    self.wake()
            except Exception:
                log.exception("the ends of processes cannot be waited for")
                self._clock.wait(self._stopping, self._own.renew_interval_s)

    def _listen(self) -> None:
        while not self._stopping.is_set() and self._serving is None:
            try:
                commands = endpoint(self._intents, self._signing, node=self._node)
                self._serving = self._bus.serve(topics.ISCSI_WORKER, self._node, [commands])
            except Unavailable as problem:
                log.warning("commands cannot be heard yet", problem=problem.detail)
                self._clock.wait(self._stopping, self._own.report_retry_s)

    def _reconcile(self) -> None:
        while not self._stopping.is_set():
            self._awake.clear()
            try:
                self.step()
            except (Unavailable, SessionLost) as problem:
                log.warning("this turn changed nothing", problem=problem.detail)
            except Exception:
                log.exception("a turn failed")
            self._clock.wait(self._awake, max(0.0, self._turn_due - self._clock.monotonic()))

    def step(self) -> None:
        """Glance at what changed since the last step, where that will do; turn otherwise, and every `renew_interval_s`."""
        with self._lock:
            news, self._news = self._news, frozenset()
        if self._glance(news):
            return
        try:
            self.turn()
        finally:
            soon = self._own.take_retry_s if self._turned and self._turned.held_back else self._own.renew_interval_s
            self._turn_due = self._clock.monotonic() + soon

    def turn(self) -> None:
        """Look, cover what runs by leases, decide, hand out. Never waits for a lane."""
        began = self._clock.monotonic()
        self._membership.turned()
        self._turned = None
        under = self._lanes.look()
        running = {one.export: one for one in self._targets.actual()}
        self._cover(running)  # also when the store does not answer
        session = self._membership.ensure()
        if session != self._view_session:  # what the one before it held is not free in a view of before
            self._view_session, self._is_view_doubted = session, True
        view = self._seen()
        now = self._clock.monotonic()
        passed_over = {export: waiting.passed_over for export, waiting in self._waiting.items() if waiting.passed_over}
        placed = free_placed(view, passed_over)
        waiting = wait_on(self._waiting, placed, now=now, grace_s=self._own.grace_s)
        if any(one.passed_over > passed_over.get(export, frozenset()) for export, one in waiting.items()):
            self._is_view_doubted = True  # others may place by another view than this one
        self._waiting = waiting
        self._unserved = {export: self._unserved.get(export, now) for export in unserved(view, session, running)}
        self._intents.settle(view)
        told = self._intents.told()
        local = self._local(session, running, under, told)
        actions = {action.export: action for action in decide(view, local, placed)}
        for ended in self._ran - running.keys() - under.busy - actions.keys():
            actions[ended] = Drop(ended)  # by its lease or its fence: clear away what is left of it
        self._ran = set(running)
        self._hand_out(actions.values(), view, local)
        self._cover_anew(running)
        _, journal_session = view.journals.get(self._membership.journal_key, (None, None))
        seen = view.sessions.get(self._node) == session == journal_session
        is_awaited = any(
            isinstance(action, Activate) for action in actions.values()
        )  # by initiators; what is to be said can wait
        if not is_awaited or self._membership.is_overdue(now):
            self._membership.announce(self._gateway(view, local, told), seen=seen)
        self._settle(view, session, running)
        self._measure(view, session, told)
        metrics.TURN_SECONDS.observe(self._clock.monotonic() - began)
        self._turned = Turned(running, under.ended, frozenset(local.busy) - under.busy)

    def _glance(self, news: frozenset[str] | None) -> bool:
        """Decide about the exports of these keys alone, all else being as the last turn left it; False when it may not be."""
        last, under = self._turned, self._lanes.look()
        view, session = self._watch.latest, self._membership.consul_session
        if last is None or view is None or session is None or not news or self._clock.monotonic() >= self._turn_due:
            return False
        is_same = under.ended == last.ended and session == self._view_session and not self._is_view_doubted
        exports = named(view, news) if is_same and not last.held_back else None
        if exports is None:
            return False
        local = self._local(session, last.running, under, self._intents.told())
        self._hand_out(decide(view, local, {}, exports), view, local)
        self._cover_anew(last.running)
        return True

    def _seen(self) -> View:
        """The latest view, holding what this node's own lanes have written."""
        touched = self._lanes.touched
        view = self._watch.fresh() if self._is_view_doubted else self._watch.look(*(export.key for export in touched))
        self._is_view_doubted = False
        self._lanes.noticed(touched)
        return view

    def _local(self, session: str, running: Mapping[ExportId, Running], under: Under, told: Told) -> Local:
        return Local(
            node=self._node,
            consul_session=session,
            running=running,
            connections=self._leases.connections,
            busy=under.busy | self._lanes.pending(),
            sick=self._leases.sick,
            refused=told.refused.keys(),
            wanted=told.wanted,
            unwanted=told.unwanted,
            handing=told.handing,
            member=self._membership.is_member,
            withdrawing=self._withdrawing,
            cut_off=self._neighbours.front.cut_off,
            store=self._image_store.said,
        )

    def _hand_out(self, actions: Iterable[Action], view: View, local: Local) -> None:
        for action in actions:
            running, since = local.running.get(action.export), self._unserved.get(action.export)
            self._lanes.hand_out(action, Grounds(view, local.consul_session, running, since))

    def _owns(self) -> Collection[ExportId]:
        view, session = self._watch.latest, self._membership.consul_session
        return view.held_by(session) if view and session else ()

    def _cover(self, running: Mapping[ExportId, Running]) -> None:
        session, self._covered = self._membership.consul_session, self._owns()
        self._leases.cover(
            [
                Lease(export, one.client, one.paths, session if export in self._covered else None, one.gate_open)
                for export, one in running.items()
            ]
        )

    def _cover_anew(self, running: Mapping[ExportId, Running]) -> None:
        if self._owns() is not self._covered:  # a view shares with the one before it what did not change
            self._cover(running)

    def _gateway(self, view: View, local: Local, told: Told) -> Gateway:
        prepared = prepared_here(view, local)
        refused = dict.fromkeys(told.wanted, REASON_STORE) if local.store.is_lost else {}
        return Gateway(
            name=self._node,
            interfaces=tuple(sorted(self._addresses.interfaces())),
            refused={str(export): reason for export, reason in sorted((refused | dict(told.refused)).items())},
            running={str(export): one.client for export, one in sorted(local.running.items()) if one.gate_open},
            prepared={str(export): one for export, one in sorted(prepared.items())},
            kept={str(export): one for export, one in sorted(told.kept.items())},
            withdrawing=self._withdrawing,
            front=self._neighbours.front,
            store=self._image_store.said,
            version=VERSION,
        )

    def _measure(self, view: View, session: str, told: Told) -> None:
        self._locks.look(view, view.held_by(session), now=self._clock.monotonic())
        front, store = self._neighbours.front, self._image_store.said
        self._cut_off.look(front.cut_off, image_store=store.cut_off)
        metrics.CLAIMED.set(len(front.claimed))
        metrics.PROCESSES.set(len(self._ran))
        metrics.REFUSED.set(len(told.refused))

    def _settle(self, view: View, session: str, running: Mapping[ExportId, Running]) -> None:
        if self._withdrawing and self._lanes.is_idle and not view.held_by(session) and not running:
            self._withdrawn.set()

    def _store_answers(self) -> bool:
        """Whether the image store answers, as it may after having been away for long, and has lately answered soon."""
        try:
            self._images.ping()
        except Problem:
            return False
        return self._pulse.is_steady

    def _leave(self) -> None:
        try:
            self._membership.leave()
        except Unavailable as problem:
            log.warning("the consul session could not be ended; its check will", problem=problem.detail)
