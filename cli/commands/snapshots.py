"""sanderling snapshot …"""

import uuid
from typing import Annotated, Any

import typer

from cli.access import find
from cli.client import Client, Json, at
from cli.commands.disks import AsJson, DryRun, Wait, ask, size_bytes
from cli.output import as_json, facts, out, size, table, watched
from sanderling.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Keep what a disk holds, go back to it, or make another disk of it.")

Disk = Annotated[str, typer.Argument(metavar="DISK", help="The disk's name, or its id.")]
Snapshot = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="The snapshot's name.")]


@app.command(epilog="Example: sanderling snapshot create backup before-upgrade --wait")
def create(disk: Disk, snapshot: Snapshot, wait: Wait = False, dry_run: DryRun = False, json: AsJson = False) -> None:
    """Keep what the disk holds now."""
    client = Client(find())
    path = at("disks", disk, "snapshots")
    answer = client.post(path, {"name": snapshot}, key=str(uuid.uuid4()), dry_run=dry_run or None)
    _shown(client, answer, f"Snapshot {snapshot} of disk {disk} is taken.", wait=wait, dry_run=dry_run, json=json)


@app.command("list", epilog="Example: sanderling snapshot list backup --json")
def list_(disk: Disk, json: AsJson = False) -> None:
    """List the snapshots of a disk, oldest first."""
    found = Client(find()).get(at("disks", disk, "snapshots"))["snapshots"]
    if json:
        as_json(found)
        return
    table(
        {
            "NAME": lambda one: one["name"],
            "TAKEN": lambda one: one["taken_at"],
            "SIZE": lambda one: size(one["size_bytes"]),
            "CLONES": lambda one: one["clones"] or None,
        },
        found,
        none="No snapshots.",
    )


@app.command(epilog="Example: sanderling snapshot rollback backup before-upgrade --confirm backup --wait")
def rollback(
    disk: Disk,
    snapshot: Snapshot,
    confirm: Annotated[str | None, typer.Option(help="The disk's name again: what it holds now is lost.")] = None,
    wait: Wait = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Make a stopped disk hold what it did when the snapshot was taken."""
    client = Client(find())
    path = at("disks", disk, "snapshots", snapshot, "rollback")
    answer = client.post(path, key=str(uuid.uuid4()), confirm=confirm, dry_run=dry_run or None)
    _shown(client, answer, f"Disk {disk} holds what snapshot {snapshot} does.", wait=wait, dry_run=dry_run, json=json)


@app.command(epilog="Example: sanderling snapshot clone backup before-upgrade --to try --allow-any --wait")
def clone(
    disk: Disk,
    snapshot: Snapshot,
    to: Annotated[str, typer.Option(help="The new disk's name.")],
    size_text: Annotated[str | None, typer.Option("--size", help="Its size, if it is to be larger.")] = None,
    paths: Annotated[int | None, typer.Option("--paths", min=1, max=8, help="How many portal addresses.")] = None,
    initiator: Annotated[list[str] | None, typer.Option(help="IQN that may log in; repeatable.")] = None,
    allow_any: Annotated[bool, typer.Option("--allow-any", help="Let any initiator log in.")] = False,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Serve it once it is made.")] = True,
    wait: Wait = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Make another disk that begins as the snapshot. Until it is deleted the snapshot stays."""
    body: dict[str, Any] = {
        "name": to,
        "source": {"disk": disk, "snapshot": snapshot},
        "size_bytes": size_bytes(size_text) if size_text else None,
        "paths": paths,
        "initiators": initiator or None,
        "allow_any": allow_any or None,
        "started": start,
    }
    given = {field: value for field, value in body.items() if value is not None}
    ask("/v1/disks", given, wait=wait, dry_run=dry_run, json=json, said="cloned")


@app.command(epilog="Example: sanderling snapshot delete backup before-upgrade --wait")
def delete(disk: Disk, snapshot: Snapshot, wait: Wait = False, dry_run: DryRun = False, json: AsJson = False) -> None:
    """Forget what a snapshot kept."""
    client = Client(find())
    answer = client.delete(at("disks", disk, "snapshots", snapshot), key=str(uuid.uuid4()), dry_run=dry_run or None)
    _shown(client, answer, f"Snapshot {snapshot} of disk {disk} is deleted.", wait=wait, dry_run=dry_run, json=json)


@app.command(epilog="Example: sanderling snapshot schedule backup --every 1h --keep 24 --wait")
def schedule(
    disk: Disk,
    every: Annotated[str | None, typer.Option(help="How often, such as 15m, 1h or 1d.")] = None,
    keep: Annotated[int | None, typer.Option(min=1, help="How many of them stay; the oldest goes first.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Take none by itself any more; those there are stay.")] = False,
    wait: Wait = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Have snapshots of a disk taken by themselves. Those you took yourself are never removed for it."""
    if off == (every is not None and keep is not None):
        raise InvalidInput.of("--every", "and --keep must be given, or --off alone", "say how often and how many")
    wanted = None if off else {"every_s": _seconds(every or ""), "keep": keep}
    client = Client(find())
    answer = client.patch(at("disks", disk), {"schedule": wanted}, key=str(uuid.uuid4()), dry_run=dry_run or None)
    done = f"Disk {disk} has no schedule." if off else f"Snapshots of disk {disk} are taken every {every}; {keep} are kept."
    if "id" in answer or "plan" in answer:
        _shown(client, answer, done, wait=wait, dry_run=dry_run, json=json)
    elif json:
        as_json(answer)
    else:
        out.print(done, highlight=False)


def _seconds(text: str) -> int:
    number, unit = text[:-1], {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:].lower())
    if unit is None or not number.isdecimal():
        raise InvalidInput.of("--every", f"{text!r} is no length of time", "give a number and s, m, h or d, such as 15m")
    return int(number) * unit


def _shown(client: Client, answer: Json, done: str, *, wait: bool, dry_run: bool, json: bool) -> None:
    if wait and not dry_run:
        answer = watched(client, answer, quiet=json)
    if json:
        as_json(answer)
    elif dry_run:
        plan = answer["plan"]
        facts([("would run", [step["name"] for step in plan["steps"]]), ("at risk", plan["at_risk"])])
    elif wait:
        out.print(done, highlight=False)
    else:
        out.print(f"Operation {answer['id']} accepted: sanderling operation watch {answer['id']}", highlight=False)
