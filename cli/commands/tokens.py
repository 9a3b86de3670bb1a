"""sanderling token …"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.access import Access, find, own_file, write
from cli.client import Client, at
from cli.commands.disks import AsJson
from cli.output import as_json, err, out, table
from sanderling import settings
from sanderling.clock import SystemClock

app = typer.Typer(no_args_is_help=True, help="Who may use the service, and as what.")


class Role(StrEnum):
    READER = "reader"
    OPERATOR = "operator"
    ADMIN = "admin"


@app.command(epilog="Example: sanderling token create monitoring --role reader --client-file monitoring.json")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom it is for.")],
    role: Annotated[Role, typer.Option(help="reader sees, operator changes disks, admin also subnets and tokens.")],
    valid_days: Annotated[int | None, typer.Option(min=1, max=3650, help="For how many days; for ever when not given.")] = None,
    note: Annotated[str, typer.Option(help="What it is for, shown to administrators.")] = "",
    client_file: Annotated[Path | None, typer.Option(help="Save it as a client file (0600) instead of printing it.")] = None,
    json: AsJson = False,
) -> None:
    """Make a token. It is shown once: the service keeps only its digest."""
    access = find()
    body = {"name": name, "role": role.value, "note": note} | ({"valid_days": valid_days} if valid_days else {})
    made = Client(access).post("/v1/tokens", body)
    if client_file:
        write(client_file, Access(access.url, made.pop("token"), access.ca_file))
    if client_file and not json:
        out.print(f"Token {name} saved in {client_file}: SANDERLING_CLIENT={client_file} sanderling disk list", highlight=False)
    elif json:
        as_json(made)
    else:
        err.print("Keep it: it is not shown again.")
        out.print(made["token"], highlight=False)


@app.command(
    epilog="Example: SANDERLING_CONFIG=/etc/sanderling/sanderling.conf sanderling token init --url https://san.example:8080"
)
def init(
    url: Annotated[str, typer.Option(help="Where this machine reaches the API.")] = "http://127.0.0.1:8080",
    name: Annotated[str, typer.Option(help="The token's name.")] = "first",
    ca_file: Annotated[str, typer.Option(help="CA that signed the API's certificate, if not a public one.")] = "",
    cert_file: Annotated[str, typer.Option(help="Certificate to show the API, where [api] tls_client_ca asks for one.")] = "",
    key_file: Annotated[str, typer.Option(help="Its private key.")] = "",
    client_file: Annotated[Path | None, typer.Option(help="Client file to write; the user's own when not given.")] = None,
    json: AsJson = False,
) -> None:
    """Make the first admin token, on the machine that has the records: whoever can write them needs no other permission."""
    from cli.grants import grant  # noqa: PLC0415  the database's imports, which no other command needs
    from sanderling.records.database import Records  # noqa: PLC0415

    file = client_file or own_file()
    records = Records(settings.load().records, clock=SystemClock())
    try:
        records.migrate()
        write(file, Access(url, grant(records, name), ca_file, cert_file, key_file))
    finally:
        records.close()
    if json:
        as_json({"name": name, "client_file": str(file), "url": url})
    else:
        out.print(f"Token {name} saved in {file}.", highlight=False)


@app.command("list", epilog="Example: sanderling token list")
def list_(json: AsJson = False) -> None:
    """List tokens, without their secrets."""
    found = Client(find()).pages("/v1/tokens", "tokens")
    if json:
        as_json(list(found))
        return
    table(
        {
            "NAME": lambda token: token["name"],
            "ROLE": lambda token: token["role"],
            "CREATED": lambda token: token["created_at"],
            "EXPIRES": lambda token: token.get("expires_at"),
            "NOTE": lambda token: token.get("note"),
            "LAST USED": lambda token: token.get("last_used_at"),
        },
        found,
        none="No tokens.",
    )


@app.command(epilog="Example: sanderling token delete monitoring")
def delete(name: Annotated[str, typer.Argument(metavar="NAME", help="The token's name or id.")], json: AsJson = False) -> None:
    """Revoke a token; it is refused from now on."""
    Client(find()).delete(at("tokens", name))
    if json:
        as_json({"name": name, "deleted": True})
    else:
        out.print(f"Token {name} revoked.", highlight=False)
