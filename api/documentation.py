"""The OpenAPI document, with what FastAPI does not know: problems as every failure's body, and the ways to send a token."""

from collections.abc import Callable, Sequence, Set
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from api.auth import guarded_routes
from api.problems import MEDIA_TYPE, ProblemDocument
from sanderling.errors import Problem

_EVERYWHERE: Final = (400, 404, 405, 413, 422, 500, 503)
_GUARDED: Final = (401, 403)
_CHANGING: Final = (409, 412, 429)


def of(app: FastAPI, routes: Sequence[BaseRoute]) -> Callable[[], dict[str, Any]]:
    """A function that makes the document once; `routes` are all that the app has."""
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(_make(app, guarded_routes(routes)))
        return made

    return openapi


def _make(app: FastAPI, guarded: Set[tuple[str, str]]) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    document = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= document.pop("$defs", {}) | {"ProblemDocument": document}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
    }
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            _document(operation, guarded=(method.upper(), path) in guarded, changing=method != "get")
    return made


def _document(operation: dict[str, Any], *, guarded: bool, changing: bool) -> None:
    operation["security"] = [{"bearer": []}, {"token": []}] if guarded else []
    if any(parameter["name"] == "dry_run" for parameter in operation.get("parameters", ())):
        content = {"application/json": {"schema": {"type": "object", "additionalProperties": True}}}
        operation["responses"]["200"] = {
            "description": "What would be done; nothing was",
            "content": content,
        }
    for status in (*_EVERYWHERE, *(_GUARDED if guarded else ()), *(_CHANGING if changing else ())):
        codes = sorted(code for code, kind in Problem.by_code.items() if kind.status == status)
        operation["responses"][str(status)] = {
            "description": "Problem: " + ", ".join(codes),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
        }
