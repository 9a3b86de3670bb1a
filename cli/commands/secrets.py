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


@app.command(epilog="Example: sanderling key new /etc/sanderling/secrets.key")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Becomes its owner's alone; a key that is there stays second.")],
) -> None:
    """Put a new key first in a key file ([secrets] key_file); make the file if it is not there."""
    kept = keys.add(file)
    said = f"the first of {kept + 1}: it seals, and the others still open" if kept else "the only one"
    out.print(f"{file} holds a new key, {said}. Copy the file to every node.", highlight=False)


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
