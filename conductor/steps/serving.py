"""Waiting until a disk is served, or no longer served, as the workers publish it; nothing is sent to them but the description.

A worker that died cannot say that it left. Once its lock is free and nobody may take the export any more, the conductor fences
the client that its key still names, and writes that in the worker's place.
"""

from collections.abc import Collection
from typing import Final

import structlog

from conductor import metrics
from conductor.steps.base import Action, Context, Stores
from conductor.steps.descriptions import METADATA_KEY, described, read
from conductor.steps.keys import exports_prefix, keys_for, publish_disk, publish_exports
from conductor.steps.reading import export_of, exports_in, is_usable, live_gateways
from sanderling.coordination.base import Coordination, Entry, Listing
from sanderling.errors import NotFound, StepTimedOut
from sanderling.images.base import Images
from sanderling.measuring import timed
from sanderling.model.disks import Disk, image_of
from sanderling.model.exports import UNKNOWN_CLIENT, ExportId, ExportPhase

log = structlog.get_logger(__name__)

_WATCH_S: Final = 1.0  # how long a stop or an abandoned attempt may go unnoticed


def await_served(context: Context) -> None:
    disk, coordination = described(context), context.stores.coordination
    listing = coordination.list(exports_prefix(disk.id))
    while missing := _unserved(listing, disk):
        if context.left_s <= 0:
            raise _not_served(context, disk, missing)
        context.check()
        if must_publish(listing, disk):
            publish_again(context)
        listing = coordination.watch(exports_prefix(disk.id), index=listing.index, timeout_s=min(_WATCH_S, context.left_s))


def must_publish(listing: Listing, disk: Disk) -> bool:
    """Whether an export's key is missing, or free and such that no worker can read it."""
    usable = [entry for entry in exports_in(listing.entries).values() if is_usable(entry)]
    return len(usable) < len(disk.export_indexes)


def publish_again(context: Context) -> None:
    """Coordination was lost since it was published: a new generation, whose first owner fences whoever has the image open."""
    images, image = context.stores.images, image_of(context.disk_id)
    found = read(images, image)
    if found is None:
        raise NotFound(f"image {image} is missing or has no description", image=image)
    stored, disk = found
    raised = disk.model_copy(update={"generation": disk.generation + 1})
    with context.effect("generation"):
        if not images.set_metadata(image, METADATA_KEY, raised.model_dump_json(), expected=stored):
            return
    with context.effect("publish"), context.stores.telling_workers(keys_for(raised)):
        publish_disk(context.stores.coordination, raised, cause=context.cause)
        publish_exports(context.stores.coordination, raised, client_of=lambda _: UNKNOWN_CLIENT)
    log.warning("published again", disk=disk.id, generation=raised.generation)


def await_released(context: Context) -> None:
    """Return once no process serves any export of the disk, and none can any more.

    A key that is missing, lost or removed by an attempt before, says nothing: who then has the image open is fenced.
    """
    prefix, coordination = exports_prefix(context.disk_id), context.stores.coordination
    listing = coordination.list(prefix)
    while True:
        entries = exports_in(listing.entries)
        held = [entry for entry in entries.values() if entry.consul_session is not None]
        left = [entry for entry in entries.values() if entry.consul_session is None and export_of(entry).needs_fence]
        for entry in left:
            _clear(context, entry)
        if not held and not left:
            if _lost(context, entries):
                with context.effect("fence_lost"):
                    fence_left(context.stores, image_of(context.disk_id), UNKNOWN_CLIENT)
            return
        holders = ", ".join(f"{e.key} by {export_of(e).node or 'somebody'}" for e in held)
        context.check(f"the gateways to give up what they hold ({holders}); look at the worker there, then ask again")
        listing = coordination.watch(prefix, index=listing.index, timeout_s=min(_WATCH_S, context.left_s))


def fence_left(stores: Stores, image: str, client: str) -> None:
    """Make sure that what the key names can write no more; `unknown` means whoever has the image open."""
    for named in _openers(stores.images, image) if client == UNKNOWN_CLIENT else (client,):
        with timed(metrics.FENCE_SECONDS, stores.clock):
            stores.images.fence(named)
        log.warning("fenced", client=named, image=image)


def mark_left(coordination: Coordination, entry: Entry) -> bool:
    """Write in a dead owner's place that it left, once it is fenced; False when somebody else has written or taken the key."""
    left = export_of(entry).model_copy(update={"client": "", "phase": ExportPhase.LEFT})
    return coordination.put(entry.key, left.model_dump_json().encode(), expected=entry.modify_index)


def _clear(context: Context, entry: Entry) -> None:
    with context.effect("fence"):
        fence_left(context.stores, image_of(context.disk_id), export_of(entry).client)
    with context.effect("mark_left"):
        mark_left(context.stores.coordination, entry)


def _lost(context: Context, present: Collection[ExportId]) -> bool:
    return any(ExportId(context.disk_id, index) not in present for index in context.indexed().export_indexes)


def _openers(images: Images, image: str) -> tuple[str, ...]:
    try:
        return images.clients(image)
    except NotFound:
        return ()


def _unserved(listing: Listing, disk: Disk) -> set[ExportId]:
    served = {export for export, entry in exports_in(listing.entries).items() if _is_served(entry, disk.export_revision)}
    return {ExportId(disk.id, index) for index in disk.export_indexes} - served


def _is_served(entry: Entry, revision: int) -> bool:
    value = export_of(entry)
    return entry.consul_session is not None and value.phase is ExportPhase.SERVING and value.revision >= revision


def _not_served(context: Context, disk: Disk, missing: set[ExportId]) -> StepTimedOut:
    """Say of each export what keeps it from being served, as far as the gateways have said."""
    coordination = context.stores.coordination
    gateways = live_gateways(coordination.list("nodes/").entries)
    entries = exports_in(coordination.list(exports_prefix(disk.id)).entries)
    reasons = []
    for export in sorted(missing):
        entry, refusals = (
            entries.get(export),
            [f"{g.name}: {g.refused[str(export)]}" for g in gateways if str(export) in g.refused],
        )
        if entry is not None and entry.consul_session is not None:
            value = export_of(entry)
            reasons.append(f"export {export.index} is {value.phase} on {value.node}")
        elif refusals:
            reasons.append(f"export {export.index} was refused by {'; '.join(refusals)}")
        else:
            reasons.append(f"export {export.index} was taken by none of {len(gateways)} live gateways")
    return StepTimedOut(
        f"disk {disk.name} was not served within {context.step.deadline_s:g} s: {', '.join(reasons)}",
        step=context.step.name,
        gateways=[gateway.name for gateway in gateways],
    )


AWAIT_SERVED = Action(await_served)
AWAIT_RELEASED = Action(await_released)
