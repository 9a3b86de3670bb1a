"""The pages of docs/reference, made of the code: every setting, every route with its right, every command.

`python -m tests.reference settings` (http, commands) prints one; `make sample` writes all, `make check` fails on a stale one.
"""

import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import typer
from fastapi import FastAPI

from api import documentation
from api.app import ROUTERS
from api.policy import RULES
from cli.main import EPILOG, app
from sanderling.errors import Problem
from sanderling.settings import Settings, options

SETTINGS = """One ini file for all processes: `$SANDERLING_CONFIG`, `./sanderling.conf` or `/etc/sanderling/sanderling.conf`, the
first that there is. `OS_<GROUP>__<OPTION>` in the environment overrides it. A value out of bounds, or one that
contradicts another, keeps a process from starting, with one line that says why."""
HTTP = """Every route, the rule that allows it, and the role that has that rule unless a policy file says otherwise. A running
API serves the same as OpenAPI at `/openapi.json`. Failures are problem documents (RFC 9457), whose `type` leads to a
page that says what it means. A change answers 202 with the operation's address in `Location`; it understands
`Idempotency-Key`, `If-Match` and `?dry_run=true`. Lists take `limit` and `marker`, and give `next`."""
_OF_EACH = {"Idempotency-Key", "If-Match", "dry_run", "limit", "marker"}
_BOUNDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "{} characters or more",
    "maxLength": "at most {} characters",
}
_OWN = {"help", "install_completion", "show_completion"}


def settings() -> Iterator[str]:
    yield "# Settings"
    yield SETTINGS
    defaults = Settings()
    for group, listed in options():
        kind = type(getattr(defaults, group))
        yield f"## [{group}]"
        yield (kind.__doc__ or "").partition("]: ")[2].strip().capitalize()
        entries = {entry.name: entry for entry in fields(kind)}
        rows = ["| option | default | at least | meaning |", "|---|---|---|---|"]
        for option in listed:
            meta = entries[option.name].metadata
            default = option.sample_default if option.sample_default is not None else option.default
            choices = f" One of {', '.join(meta['choices'])}." if meta["choices"] else ""
            secret = " Secret." if meta["secret"] else ""
            least = "" if meta["least"] is None else f"{meta['least']:g}"
            shown = f"`{default}`" if default != "" else "empty"
            rows.append(f"| `{option.name}` | {shown} | {least} | {_cell(meta['help'])}.{choices}{secret} |")
        yield "\n".join(rows)


def http() -> Iterator[str]:
    yield "# HTTP"
    yield HTTP
    api = FastAPI(title="Sanderling", openapi_url=None)
    for router in ROUTERS:
        api.include_router(router)
    document = documentation.of(api, [route for router in ROUTERS for route in router.routes])()
    by_route = {
        f"{operation['method']} {operation['path']}": rule for rule in RULES for operation in getattr(rule, "operations", ())
    }
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            route = f"{method.upper()} {path}"
            by_tag.setdefault((operation.get("tags") or ["service"])[0], []).append(_route(route, operation, by_route.get(route)))
    for tag, texts in sorted(by_tag.items()):
        yield f"## {tag.capitalize()}"
        yield from texts
    yield "## Bodies"
    for name, schema in sorted(document["components"]["schemas"].items()):
        if "properties" in schema:
            yield _schema(name, schema)
    yield "## Problems"
    rows = ["| code | status | means |", "|---|---|---|"]
    for code, kind in sorted(Problem.by_code.items()):
        meaning = (kind.__dict__.get("__doc__") or kind.title).strip()
        rows.append(f"| `{code}` | {kind.status} | {_cell(' '.join(meaning.split()))} |")
    yield "\n".join(rows)


def commands() -> Iterator[str]:
    yield "# Commands"
    yield f"`sanderling --help`, and `--help` after each. {EPILOG}"
    root: Any = typer.main.get_command(app)
    for noun, command in sorted(root.commands.items()):
        yield f"## sanderling {noun}"
        if hasattr(command, "commands"):
            yield _text(command.help)
            for verb, one in sorted(command.commands.items()):
                yield _command(f"sanderling {noun} {verb}", one, level="###")
        else:
            yield _command(f"sanderling {noun}", command, level="")


def _route(route: str, operation: dict[str, Any], rule: Any) -> str:
    lines = [f"### `{route}`", "", _text(operation.get("description") or operation.get("summary", ""))]
    lines += ["", f"Rule `{rule.name}`: {rule.check_str.removeprefix('rule:')}." if rule else "For everybody."]
    given = [_parameter(each) for each in operation.get("parameters", ()) if each["name"] not in _OF_EACH]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if "$ref" in body:
        name = body["$ref"].rpartition("/")[2]
        given.append(f"- body: [{name}](#{name.lower()})")
    return "\n".join([*lines, *(["", *given] if given else [])])


def _parameter(each: dict[str, Any]) -> str:
    needed = ", needed" if each.get("required") else ""
    return f"- `{each['name']}` ({each['in']}{needed}): {_cell(each.get('description', ''))}".rstrip(": ")


def _schema(name: str, schema: dict[str, Any]) -> str:
    needed = set(schema.get("required", ()))
    rows = ["| member | | type |", "|---|---|---|"]
    for member, each in schema["properties"].items():
        rows.append(f"| `{member}` | {'needed' if member in needed else ''} | {_cell(_type(each))} |")
    return "\n".join([f"### {name}", "", _text(schema.get("description", "")), "", *rows])


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    said = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    return ", ".join([str(schema.get("type", "anything")), *said])


def _command(name: str, command: Any, *, level: str) -> str:
    lines = [f"{level} {name}".strip() if level else "", "", _text(command.help)]
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    given = [f"- `{each.metavar or each.name.upper()}`: {_text(each.help)}" for each in arguments]
    for each in (each for each in command.params if each.param_type_name == "option" and each.name not in _OWN):
        given += [f"- `{', '.join([*each.opts, *each.secondary_opts])}`: {_text(each.help)}"]
    example = (command.epilog or "").removeprefix("Example: ")
    lines += ["", *given] if given else []
    lines += ["", f"`{example}`"] if example else []
    return "\n".join(lines).strip("\n")


def _text(text: str | None) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n")).strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


PAGES = {"settings": settings, "http": http, "commands": commands}

if __name__ == "__main__":
    sys.stdout.write("\n\n".join(part for part in PAGES[sys.argv[1]]() if part) + "\n")
