"""sanderling notification …"""

import os
import sys
from typing import Annotated

import typer

from cli.access import find
from cli.client import Client, at
from cli.commands.disks import AsJson
from cli.output import as_json, facts, out, table
from sanderling.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Who is told of which events: e-mail, webhooks, chat.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The rule's name.")]
URL_VARIABLE = "SANDERLING_NOTIFICATION_URL"


@app.command(epilog="Example: sanderling notification create on-call --kind 'alert.*' --kind disk.failed < url.txt")
def create(
    name: Name,
    kind: Annotated[
        list[str] | None, typer.Option(help="A kind of event, or a pattern such as alert.*; repeatable. Default: what is bad.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Add a rule. The receiver's URL is a secret: it is read from SANDERLING_NOTIFICATION_URL, or from standard input."""
    body = {"name": name, "url": _url()} | ({"kinds": kind} if kind else {})
    made = Client(find()).post("/v1/notifications", body)
    if json:
        as_json(made)
    else:
        out.print(f"Rule {made['name']} tells {made['receiver']} of {', '.join(made['kinds'])}.", highlight=False, markup=False)


def _url() -> str:
    url = os.environ.get(URL_VARIABLE) or (typer.prompt("URL", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline())
    if not url.strip():
        raise InvalidInput.of("url", "is empty", f"give it on standard input or in {URL_VARIABLE}")
    return str(url).strip()


@app.command("list", epilog="Example: sanderling notification list")
def list_(json: AsJson = False) -> None:
    """List rules, and how far each has come."""
    found = Client(find()).pages("/v1/notifications", "notifications")
    if json:
        as_json(list(found))
        return
    table(
        {
            "NAME": lambda rule: rule["name"],
            "RECEIVER": lambda rule: rule["receiver"],
            "KINDS": lambda rule: rule["kinds"],
            "DELIVERED": lambda rule: rule["delivered"],
            "BEHIND": lambda rule: rule["behind"],
            "GIVEN UP": lambda rule: rule["given_up"],
            "LAST ERROR": lambda rule: rule["last_error"],
        },
        found,
        none="No notification rules.",
    )


@app.command(epilog="Example: sanderling notification show on-call")
def show(name: Name, json: AsJson = False) -> None:
    """Show one rule; its URL is not shown again."""
    rule = Client(find()).get(at("notifications", name))
    if json:
        as_json(rule)
        return
    facts(
        [
            ("name", rule["name"]),
            ("receiver", rule["receiver"]),
            ("kinds", rule["kinds"]),
            ("told up to event", rule["cursor"]),
            ("events that wait", rule["behind"]),
            ("delivered", rule["delivered"]),
            ("last delivered", rule["delivered_at"]),
            ("given up", rule["given_up"]),
            ("failed attempts", rule["failures"]),
            ("failing since", rule["failing_since"]),
            ("next attempt", rule["next_attempt_at"]),
            ("last error", rule["last_error"]),
        ]
    )


@app.command("test", epilog="Example: sanderling notification test on-call")
def send_test(name: Name, json: AsJson = False) -> None:
    """Have the leader send one test message, behind what waits already."""
    asked = Client(find()).post(at("notifications", name, "test"))
    if json:
        as_json(asked)
    else:
        out.print(f"Event {asked['event']} is on its way; see: sanderling notification show {name}", highlight=False)


@app.command(epilog="Example: sanderling notification delete on-call")
def delete(name: Name, json: AsJson = False) -> None:
    """Take a rule away; what waited is not sent."""
    Client(find()).delete(at("notifications", name))
    if json:
        as_json({"name": name, "deleted": True})
    else:
        out.print(f"Rule {name} removed.", highlight=False)
