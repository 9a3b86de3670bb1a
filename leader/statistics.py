"""The duty of measuring: what the pool holds, what each gateway and each export does, into the records in slots of time.

Whether a gateway was lost, left or came back shows here too, by its last sample: so it is told once, whoever leads.
"""

import queue
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import structlog
from sqlalchemy.orm import Session

from leader import metrics
from leader.duties import Tenure
from leader.rounds import Rounds
from sanderling.clock import Clock
from sanderling.coordination.base import Coordination, Entry
from sanderling.coordination.values import value_of
from sanderling.errors import Problem
from sanderling.images.base import Capacity, Images
from sanderling.model.exports import Export, ExportId, Gateway
from sanderling.model.leaders import CLUSTER as SERVICE
from sanderling.model.statistics import CLUSTER, EXPORTS, GATEWAYS, Figures, Sample, slot
from sanderling.records import events, statistics, terms
from sanderling.records.database import Records
from sanderling.settings import Settings

log = structlog.get_logger(__name__)


class StatisticsDuty(Rounds):
    """A sample of the cluster and of each gateway in every slot of `interval_s`, of exports less often."""

    name = "statistics"

    def __init__(self, settings: Settings, *, records: Records, coordination: Coordination, images: Images, clock: Clock) -> None:
        super().__init__(settings.leader, clock=clock)
        self._options, self._records, self._coordination = settings.statistics, records, coordination
        self._usage = _Usage(images, clock=clock)
        self._gateways: Mapping[str, Figures] = {}
        self._exports_slot: datetime | None = None
        self._last_export: ExportId | None = None

    def prepare(self, tenure: Tenure) -> None:
        with self._records.begin() as session:
            terms.hold(session, SERVICE, tenure.term)
            self._gateways = statistics.gateways(session)
        self._exports_slot = None

    def halt(self) -> None:
        metrics.no_figures()

    def turn(self, tenure: Tenure) -> float:
        options, now = self._options, self._clock.wall()
        at = slot(now, options.interval_s)
        exports = of_exports(self._coordination.list("exports/").entries)
        gateways = of_gateways(self._coordination.list("nodes/").entries, exports)
        capacity = self._usage.ask(options.ask_timeout_s)
        samples = [Sample(at, CLUSTER, of_cluster(capacity, gateways, exports))]
        samples += [Sample(at, f"{GATEWAYS}{name}", figures) for name, figures in gateways.items()]
        exports_slot = slot(now, options.export_interval_s)
        if exports_slot != self._exports_slot:
            samples += [Sample(at, f"{EXPORTS}{export}", exports[export]) for export in self._next_exports(exports)]
        if tenure.holds():
            self._store(samples, gateways, tenure, now)
            self._exports_slot = exports_slot
            if tenure.holds():
                metrics.measured(samples)
        following = at + timedelta(seconds=options.interval_s)
        return max(0.0, (following - self._clock.wall()).total_seconds())

    def _store(self, samples: list[Sample], gateways: Mapping[str, Figures], tenure: Tenure, now: datetime) -> None:
        options = self._options
        with self._records.begin() as session:
            terms.hold(session, SERVICE, tenure.term)
            stored = statistics.record(session, samples)
            seen = {name: figures for name, figures in gateways.items() if f"{GATEWAYS}{name}" in stored}
            _tell(session, self._gateways, seen, now=now)
            statistics.thin(session, coarse_s=options.coarse_s, now=now)
            statistics.prune(
                session,
                fine_before=now - timedelta(seconds=options.keep_s),
                coarse_before=now - timedelta(seconds=options.coarse_keep_s),
                limit=options.prune_rows,
            )
        self._gateways = {**self._gateways, **seen}

    def _next_exports(self, exports: Mapping[ExportId, Figures]) -> list[ExportId]:
        """As many as a turn may measure, going on behind the last one of the turn before."""
        ordered, last = sorted(exports), self._last_export
        begin = next((place for place, export in enumerate(ordered) if last is not None and export > last), 0)
        chosen = (ordered[begin:] + ordered[:begin])[: self._options.exports_max]
        self._last_export = chosen[-1] if len(chosen) < len(ordered) else None
        return chosen


def of_exports(entries: Iterable[Entry]) -> dict[ExportId, Figures]:
    """What the keys of exports tell; one that nobody locks is on no gateway, and one that cannot be read is left out."""
    found: dict[ExportId, Figures] = {}
    for entry in entries:
        export, value = ExportId.from_key(entry.key), value_of(entry, Export)
        if export is not None and value is not None:
            held = entry.consul_session is not None
            found[export] = {
                "gateway": value.node if held else None,
                "phase": value.phase.value if held else "down",
                "connections": len(value.connections) if held else 0,
            }
    return found


def of_gateways(entries: Iterable[Entry], exports: Mapping[ExportId, Figures]) -> dict[str, Figures]:
    """By name: whether it lives and what it serves; `withdrawing` of one that does not live says that it left in order."""
    served, connected = Counter[str](), Counter[str]()
    for figures in exports.values():
        if figures["gateway"]:
            served[str(figures["gateway"])] += 1
            connected[str(figures["gateway"])] += int(figures["connections"] or 0)
    found: dict[str, Figures] = {}
    for entry in entries:
        said = value_of(entry, Gateway)
        if said is not None:
            found[said.name] = {
                "live": entry.consul_session is not None,
                "withdrawing": said.withdrawing,
                "exports": served[said.name],
                "connections": connected[said.name],
            }
    return found


def of_cluster(capacity: Capacity | None, gateways: Mapping[str, Figures], exports: Mapping[ExportId, Figures]) -> Figures:
    """The pool's figures are None while the image store cannot say them."""
    return {
        "total_bytes": capacity.total_bytes if capacity else None,
        "free_bytes": capacity.free_bytes if capacity else None,
        "used_bytes": capacity.total_bytes - capacity.free_bytes if capacity else None,
        "gateways": sum(1 for figures in gateways.values() if figures["live"]),
        "exports": len(exports),
        "exports_served": sum(1 for figures in exports.values() if figures["gateway"]),
        "connections": sum(int(figures["connections"] or 0) for figures in exports.values()),
    }


def _tell(session: Session, before: Mapping[str, Figures], now_seen: Mapping[str, Figures], *, now: datetime) -> None:
    """Into the history what changed since a gateway's last sample."""
    for name, figures in now_seen.items():
        was, is_live = before.get(name), bool(figures["live"])
        if was is None or bool(was["live"]) == is_live:
            continue
        kind = "gateway.back" if is_live else "gateway.left" if figures["withdrawing"] else "gateway.lost"
        log.info("gateway changed", gateway=name, kind=kind)
        events.append(session, kind, at=now, actor="leader", resource_id=name, data={"name": name})


class _Usage:
    """Asks for the pool's usage in a thread of its own, since the answer may take longer than a turn; one question at a time."""

    def __init__(self, images: Images, *, clock: Clock) -> None:
        self._images, self._clock = images, clock
        self._asking: threading.Thread | None = None

    def ask(self, timeout_s: float) -> Capacity | None:
        """None when there is no answer in time, or none yet to the question before."""
        if self._asking is not None and self._asking.is_alive():
            return None
        answers: queue.SimpleQueue[Capacity | None] = queue.SimpleQueue()
        self._asking = threading.Thread(target=self._put, args=(answers,), name="usage", daemon=True)
        self._asking.start()
        try:
            return answers.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _put(self, answers: "queue.SimpleQueue[Capacity | None]") -> None:
        try:
            answers.put(self._images.capacity())
        except Problem as problem:
            log.warning("the pool's usage is not known", reason=problem.detail)
            answers.put(None)
        except Exception:
            log.exception("asking for the pool's usage failed")
            answers.put(None)
