"""sanderling key …, and how commands ask for a secret: by typing it or from a file, never as an argument."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.output import out
from sanderling import secrets as keys
from sanderling.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Make keys that seal the secrets which are kept.")

SecretFile = Annotated[
    Path | None, typer.Option("--secret-file", help="Read the secret from here, - for standard input, and do not ask for it.")
]
MutualUser = Annotated[
    str | None, typer.Option("--mutual-user", help="Name that the target proves in turn; its secret is asked for.")
]
MutualSecretFile = Annotated[
    Path | None, typer.Option("--mutual-secret-file", help="The same for the secret that the target proves.")
]


@app.command(epilog="Example: sanderling key new /etc/sanderling/secrets.key")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Becomes its owner's alone; keys that are there stay before it.")],
) -> None:
    """Put a new key last in a key file ([secrets] key_file); make the file if it is not there."""
    kept = keys.add(file)
    said = f"the last of {kept + 1}: it opens, and the first still seals and signs" if kept else "the only one"
    then = f", then `sanderling key promote {file}` there" if kept else ""
    out.print(f"{file} holds a new key, {said}. Copy the file to every node{then}.", highlight=False)


@app.command(epilog="Example: sanderling key promote /etc/sanderling/secrets.key")
def promote(file: Annotated[Path, typer.Argument(metavar="FILE", help="A key file that every node has had a copy of.")]) -> None:
    """Move the last key of a key file to the front: from now on it seals and signs; the others still open."""
    held = keys.promote(file)
    out.print(f"{file} seals and signs with what was the last of its {held} keys. Do the same on every node.", highlight=False)


def chap(
    option: str, user: str | None, secret_file: Path | None, mutual_user: str | None, mutual_secret_file: Path | None
) -> dict[str, str] | None:
    """What initiators prove, and the target in turn; None without a user, whom `option` gives. Nothing given is ignored."""
    if user is None and any(given is not None for given in (secret_file, mutual_user, mutual_secret_file)):
        raise InvalidInput.of(option, "is missing, and so nobody would have to prove a secret", "give it as well")
    if user is None:
        return None
    if mutual_user is None and mutual_secret_file is not None:
        raise InvalidInput.of("--mutual-user", "is missing, and so the target would prove nothing", "give it as well")
    proved = {"user": user, "secret": secret("CHAP secret", secret_file)}
    if mutual_user is None:
        return proved
    return proved | {"mutual_user": mutual_user, "mutual_secret": secret("mutual CHAP secret", mutual_secret_file)}


def secret(what: str, file: Path | None) -> str:
    """The secret, typed twice, or the first line of the file."""
    if file is None:
        if not sys.stdin.isatty():
            raise InvalidInput.of(
                "--secret-file", "is missing, and there is no terminal to ask at", "name a file, or - for stdin"
            )
        return str(typer.prompt(what, hide_input=True, confirmation_prompt=True, err=True))
    try:
        text = sys.stdin.readline() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput.of("--secret-file", f"{file} cannot be read: {error}", "name a file that can") from error
    return text.split("\n")[0]
