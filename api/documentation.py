"""The OpenAPI document, with what FastAPI does not know: problems as every failure's body, and the ways to send a token."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.problems import MEDIA_TYPE, ProblemDocument
from sanderling.errors import Problem

_EVERYWHERE: Final = (400, 404, 405, 413, 422, 500, 503)
_GUARDED: Final = (401, 403)
_CHANGING: Final = (409, 412)
_OPEN: Final = ("/healthz", "/readyz", "/problems/{code}")


def of(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """A function that makes the document once."""
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(_make(app))
        return made

    return openapi


def _make(app: FastAPI) -> dict[str, Any]:
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
            _document(operation, path, changing=method != "get")
    return made


def _document(operation: dict[str, Any], path: str, *, changing: bool) -> None:
    guarded = path not in _OPEN
    operation["security"] = [{"bearer": []}, {"token": []}] if guarded else []
    for status in (*_EVERYWHERE, *(_GUARDED if guarded else ()), *(_CHANGING if changing else ())):
        codes = sorted(code for code, kind in Problem.by_code.items() if kind.status == status)
        operation["responses"][str(status)] = {
            "description": "Problem: " + ", ".join(codes),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
        }
