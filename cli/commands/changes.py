"""sanderling disk rename, grow, allow and chap: what of a disk can be changed."""

import uuid
from typing import Annotated, Any

import typer

from cli.access import find
from cli.client import Client, at
from cli.commands import secrets
from cli.commands.disks import AsJson, DryRun, Name, Wait, app, shown, size_bytes
from cli.commands.secrets import MutualSecretFile, MutualUser, SecretFile
from cli.output import as_json, err
from sanderling.errors import InvalidInput


@app.command(epilog="Example: sanderling disk rename backup archive --wait")
def rename(
    name: Name,
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="Lower-case letters, digits and hyphens.")],
    wait: Wait = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Give a disk another name. Its IQN stays, so initiators notice nothing."""
    _change(name, {"name": new_name}, wait=wait, dry_run=dry_run, json=json)


@app.command(epilog="Example: sanderling disk grow backup --size 200G --wait")
def grow(
    name: Name,
    size_text: Annotated[str, typer.Option("--size", help="Its whole new size, such as 200G (powers of 1024).")],
    wait: Wait = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Make a disk larger. Initiators are disconnected for a moment, and see the new size after a rescan."""
    _change(name, {"size_bytes": size_bytes(size_text)}, wait=wait, dry_run=dry_run, json=json)


@app.command(epilog="Example: sanderling disk allow backup --initiator iqn.1993-08.org.debian:host1 --wait")
def allow(
    name: Name,
    initiator: Annotated[list[str] | None, typer.Option(help="IQN that may log in; repeatable. Others no longer may.")] = None,
    allow_any: Annotated[bool, typer.Option("--any", help="Let any initiator log in.")] = False,
    nobody: Annotated[bool, typer.Option("--nobody", help="Let no initiator log in.")] = False,
    wait: Wait = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Say which initiators may log in. Initiators are disconnected for a moment; those that may come back by themselves."""
    if bool(initiator) + allow_any + nobody != 1:
        raise InvalidInput.of(
            "--initiator", "or --any or --nobody must be given, and only one of the three", "say who may log in"
        )
    body: dict[str, Any] = {"allow_any": True} if allow_any else {"initiators": initiator or []}
    _change(name, body, wait=wait, dry_run=dry_run, json=json)


@app.command(epilog="Example: sanderling disk chap backup --user host1 --wait")
def chap(
    name: Name,
    user: Annotated[str | None, typer.Option(help="Name that initiators prove; the secret is asked for.")] = None,
    mutual_user: MutualUser = None,
    off: Annotated[bool, typer.Option("--off", help="Let initiators in that prove nothing.")] = False,
    secret_file: SecretFile = None,
    mutual_secret_file: MutualSecretFile = None,
    wait: Wait = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Have initiators prove a secret of 12 to 16 bytes when they log in, or no longer. It is kept sealed and never shown."""
    if off == (user is not None):
        raise InvalidInput.of("--user", "or --off must be given, and only one of the two", "say which")
    wanted = secrets.chap("--user", user, secret_file, mutual_user, mutual_secret_file)
    _change(name, {"chap": wanted}, wait=wait, dry_run=dry_run, json=json)


def _change(name: str, body: dict[str, Any], *, wait: bool, dry_run: bool, json: bool) -> None:
    client = Client(find())
    answer = client.patch(at("disks", name), body, key=str(uuid.uuid4()), dry_run=dry_run or None)
    if "id" in answer or "plan" in answer:
        shown(client, answer, wait=wait, dry_run=dry_run, json=json, said="changed")
    elif json:
        as_json(answer)
    else:
        for note in answer["notes"]:
            err.print(f"Note: {note}", markup=False, highlight=False)
