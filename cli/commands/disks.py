"""sanderling disk …"""

import uuid
from enum import StrEnum
from typing import Annotated, Any

import pydantic
import typer

from cli.access import find
from cli.client import Client, Json, at
from cli.commands.secrets import MutualSecretFile, MutualUser, SecretFile, chap
from cli.output import as_json, err, facts, out, size, table, watched
from sanderling.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Create, show, change, start, stop and delete disks.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the operation to its end, showing its steps.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done and what is at risk; change nothing.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The disk's name, or its id.")]


class AccessMode(StrEnum):
    EXCLUSIVE = "exclusive"
    SHARED = "shared"


def size_bytes(text: str) -> int:
    """Bytes in a size such as 1G, 512M or 1.5TiB; letters alone mean powers of 1024, as with rbd and qemu-img."""
    spelled = f"{text}iB" if text[-1:].lower() in set("kmgtp") else text
    try:
        return int(pydantic.TypeAdapter(pydantic.ByteSize).validate_python(spelled))
    except pydantic.ValidationError as error:
        raise InvalidInput.of("--size", f"{text!r} is not a size", "give a number and a unit, such as 10G or 512M") from error


@app.command(
    epilog="Example: sanderling disk create backup --size 100G --paths 2 --initiator iqn.1993-08.org.debian:host1 --wait"
)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and hyphens.")],
    size_text: Annotated[str, typer.Option("--size", help="Such as 10G (powers of 1024).")],
    paths: Annotated[int | None, typer.Option("--paths", min=1, max=8, help="How many portal addresses.")] = None,
    subnet: Annotated[list[str] | None, typer.Option(help="Take addresses from this subnet; repeatable.")] = None,
    address: Annotated[list[str] | None, typer.Option(help="Use this address; repeatable, one per path.")] = None,
    access: Annotated[
        AccessMode, typer.Option(help="exclusive: one node serves all paths. shared: spread.")
    ] = AccessMode.EXCLUSIVE,
    initiator: Annotated[list[str] | None, typer.Option(help="IQN that may log in; repeatable.")] = None,
    allow_any: Annotated[bool, typer.Option("--allow-any", help="Let any initiator log in.")] = False,
    iqn: Annotated[str | None, typer.Option(help="The target's own name; made from NAME when not given.")] = None,
    chap_user: Annotated[str | None, typer.Option(help="Name that initiators prove; the secret is asked for.")] = None,
    secret_file: SecretFile = None,
    mutual_user: MutualUser = None,
    mutual_secret_file: MutualSecretFile = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Serve it once it is made.")] = True,
    wait: Wait = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Create a disk, and serve it unless told otherwise."""
    body: dict[str, Any] = {
        "name": name,
        "size_bytes": size_bytes(size_text),
        "paths": paths,
        "subnets": subnet or None,
        "addresses": address or None,
        "access": access.value,
        "initiators": initiator or None,
        "allow_any": allow_any or None,
        "iqn": iqn,
        "chap": chap("--chap-user", chap_user, secret_file, mutual_user, mutual_secret_file),
        "started": start,
    }
    given = {field: value for field, value in body.items() if value is not None}
    ask("/v1/disks", given, wait=wait, dry_run=dry_run, json=json, said="created")


@app.command("list", epilog="Example: sanderling disk list --state started --json")
def list_(
    name: Annotated[str | None, typer.Option(help="Only those whose name contains this.")] = None,
    state: Annotated[str | None, typer.Option(help="Only those in this state, such as started.")] = None,
    access: Annotated[AccessMode | None, typer.Option(help="Only those with this access.")] = None,
    json: AsJson = False,
) -> None:
    """List disks."""
    found = Client(find()).pages("/v1/disks", "disks", name=name, state=state, access=access and access.value)
    if json:
        as_json(list(found))
        return
    table(
        {
            "NAME": lambda disk: disk["name"],
            "STATE": lambda disk: disk["state"],
            "SIZE": lambda disk: size(disk["size_bytes"]),
            "ACCESS": lambda disk: disk["access"],
            "PATHS": lambda disk: [path["address"] for path in disk["paths"]],
        },
        found,
        none="No disks.",
    )


@app.command(epilog="Example: sanderling disk show backup")
def show(name: Name, json: AsJson = False) -> None:
    """Show one disk and where each of its paths is served."""
    disk = Client(find()).get(at("disks", name))
    if json:
        as_json(disk)
        return
    _show(disk)


@app.command(epilog="Example: sanderling disk start backup --wait")
def start(name: Name, wait: Wait = False, dry_run: DryRun = False, json: AsJson = False) -> None:
    """Serve a stopped disk."""
    ask(at("disks", name, "start"), None, wait=wait, dry_run=dry_run, json=json, said="started")


@app.command(epilog="Example: sanderling disk stop backup --wait")
def stop(name: Name, wait: Wait = False, dry_run: DryRun = False, json: AsJson = False) -> None:
    """Stop serving a disk; its data stays."""
    ask(at("disks", name, "stop"), None, wait=wait, dry_run=dry_run, json=json, said="stopped")


@app.command(epilog="Example: sanderling disk delete backup --force --confirm backup --wait")
def delete(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Also when it is started or connected.")] = False,
    confirm: Annotated[str | None, typer.Option(help="The disk's name again, needed with --force.")] = None,
    wait: Wait = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Delete a disk and all of its data."""
    client = Client(find())
    answer = client.delete(
        at("disks", name), force=force or None, confirm=confirm, dry_run=dry_run or None, key=str(uuid.uuid4())
    )
    shown(client, answer, wait=wait, dry_run=dry_run, json=json, said="deleted")


@app.command(epilog="Example: sanderling disk mark backup --pin node-1 --avoid node-3 --wait")
def mark(
    name: Name,
    pin: Annotated[str | None, typer.Option(help="The gateway where it is to be.")] = None,
    avoid: Annotated[list[str] | None, typer.Option(help="A gateway where it must not be; repeatable.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take all its marks away.")] = False,
    wait: Wait = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Say where a disk is to be; these marks replace those it has."""
    if clear == bool(pin or avoid):
        raise InvalidInput.of("--clear", "goes alone, and without it there must be a mark", "give --pin or --avoid, or --clear")
    client = Client(find())
    body = {"pin": pin, "avoid": avoid or []}
    answer = client.put(at("disks", name, "marks"), body, key=str(uuid.uuid4()), dry_run=dry_run or None)
    if "id" in answer:
        shown(client, answer, wait=wait, dry_run=dry_run, json=json, said="marked")
    elif json:
        as_json(answer)
    else:
        for note in answer["notes"]:
            err.print(f"Note: {note}", markup=False, highlight=False)
        facts([("disk", answer["disk"]), *_marks(answer["marks"])])


@app.command(epilog="Example: sanderling disk recover --wait")
def recover(wait: Wait = False, dry_run: DryRun = False, json: AsJson = False) -> None:
    """Rebuild the index of disks from what their images in Ceph say, when the records were lost."""
    ask("/v1/recoveries", None, wait=wait, dry_run=dry_run, json=json, said="recovered")


def ask(path: str, body: Json | None, *, wait: bool, dry_run: bool, json: bool, said: str) -> None:
    """Post a request about a disk, follow it if that is wanted, and show what came of it."""
    client = Client(find())
    answer = client.post(path, body, key=str(uuid.uuid4()), dry_run=dry_run or None)
    shown(client, answer, wait=wait, dry_run=dry_run, json=json, said=said)


def shown(client: Client, answer: Json, *, wait: bool, dry_run: bool, json: bool, said: str) -> None:
    """What came of an accepted request, which is followed to its end first if that is wanted."""
    for note in () if json else answer.get("notes", ()):
        err.print(f"Note: {note}", markup=False, highlight=False)
    if wait and not dry_run:
        answer = watched(client, answer, quiet=json)
    if json:
        as_json(answer)
    elif dry_run:
        plan = answer["plan"]
        facts([("would run", [step["name"] for step in plan["steps"]]), ("at risk", plan["at_risk"])])
    elif not wait:
        out.print(f"Operation {answer['id']} accepted: sanderling operation watch {answer['id']}", highlight=False)
    elif said == "recovered":
        found = [event for event in client.history(after=0) if event["operation_id"] == answer["id"]]
        names = [event["data"]["name"] for event in found if event["kind"] == "disk.recovered"]
        out.print(f"Recovered: {', '.join(names) or 'none was missing'}.", highlight=False)
    elif said == "deleted":
        out.print(f"Disk {answer['resource_name']} is {said}.", highlight=False)
    else:
        _show(client.get(at("disks", answer["resource_id"])))


def _marks(marks: Json) -> list[tuple[str, Any]]:
    return [("pinned to", marks["pin"]), ("avoids", marks["avoid"])]


def _chap(chap: Json | None) -> str | None:
    if chap is None:
        return None
    mutual = chap["mutual_user"]
    return f"{chap['user']}, and the target proves {mutual}" if mutual else str(chap["user"])


def _schedule(schedule: Json | None) -> str | None:
    return f"one every {schedule['every_s']} s, {schedule['keep']} kept" if schedule else None


def _show(disk: Json) -> None:
    facts(
        [
            ("name", disk["name"]),
            ("id", disk["id"]),
            ("state", disk["state"]),
            ("size", size(disk["size_bytes"])),
            ("access", disk["access"]),
            ("iqn", disk["iqn"]),
            *_marks(disk["marks"]),
            ("initiators", "any" if disk["allow_any"] else disk["initiators"] or "nobody may log in"),
            ("chap", _chap(disk["chap"])),
            ("snapshots", _schedule(disk["schedule"])),
        ]
    )
    table(
        {
            "PATH": lambda path: path["index"],
            "ADDRESS": lambda path: path["address"],
            "SUBNET": lambda path: path["subnet"],
            "GATEWAY": lambda path: path.get("gateway"),
            "STATUS": lambda path: path.get("status"),
        },
        disk["paths"],
        none="No paths.",
    )
