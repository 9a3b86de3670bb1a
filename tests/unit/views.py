"""Views that no store was read for."""

from collections.abc import Mapping

from immutables import Map

from iscsi_worker.view import Held, View
from sanderling.model.disks import Disk
from sanderling.model.exports import ExportId, Gateway


def view_of(disks: Mapping[str, Disk], exports: Mapping[ExportId, Held], gateways: Mapping[str, Gateway] | None = None) -> View:
    """Each of the gateways, which live, has the session that locks what it serves."""
    gateways = gateways or {}
    known = {held.export.node: held.consul_session for held in exports.values() if held.consul_session}
    by_session: Map[str | None, Map[ExportId, None]] = Map()
    for export, held in exports.items():
        ids: Map[ExportId, None] = by_session.get(held.consul_session, Map())
        by_session = by_session.set(held.consul_session, ids.set(export, None))
    return View(
        index=1,
        disks=Map(disks),
        exports=dict(exports),
        gateways=Map(gateways),
        sessions=Map({name: known.get(name) or f"session-{name}" for name in gateways}),
        by_session=by_session,
    )
