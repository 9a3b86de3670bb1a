"""How every failure leaves: one problem document (RFC 9457), made from `Problem.by_code` or from what the framework found."""

import html
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from sanderling.errors import InvalidInput, Malformed, NotFound, Problem, TooLarge, TooManyRequests, Unauthenticated

MEDIA_TYPE = "application/problem+json"

_FIXES = {
    "extra_forbidden": ("is not known here", "leave it out, or check its spelling"),
    "missing": ("is required", "give it"),
    "model_attributes_type": ("must be a JSON object", "send one, with Content-Type: application/json"),
    "model_type": ("must be a JSON object", "send one, with Content-Type: application/json"),
    "too_short": ("must have at least 1 entry", "give some, or leave it out"),
    "dict_type": ("must be a JSON object", "send one"),
}


class MethodNotAllowed(Problem):
    code, status, title = "method-not-allowed", 405, "The resource does not have this method"


class FieldError(BaseModel):
    field: str
    rule: str
    fix: str


class ProblemDocument(BaseModel):
    """RFC 9457. `type` is a page that explains the problem; members beyond these say more about this one."""

    type: str = Field(examples=["/problems/not-found"])
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldError] | None = None


def document(problem: Problem, *, instance: str) -> dict[str, Any]:
    """The members that the RFC names come last, so that context cannot mask them."""
    return problem.context | {
        "type": f"/problems/{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": instance,
    }


def answer(problem: Problem, *, instance: str, headers: Mapping[str, str] | None = None) -> Response:
    extra = dict(headers or {})
    if isinstance(problem, Unauthenticated):
        extra["WWW-Authenticate"] = 'Bearer realm="sanderling"'
    if problem.status == 503:
        extra["Retry-After"] = "1"
    if isinstance(problem, TooManyRequests):
        extra["Retry-After"] = str(problem.context["retry_after_s"])
    body = json.dumps(document(problem, instance=instance))
    return Response(body, problem.status, headers=extra, media_type=MEDIA_TYPE)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Make every failure of the app, which serves these routes, a problem document."""

    @app.exception_handler(Problem)
    def known(request: Request, problem: Problem) -> Response:
        return answer(problem, instance=request.url.path)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(_of_validation(error.errors()), instance=request.url.path)

    @app.exception_handler(HTTPException)
    def framework(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = _allowed(request, routes)
        return answer(_of_framework(request, error, headers), instance=request.url.path, headers=headers)

    @app.exception_handler(Exception)  # the server logs it with its traceback; the answer tells nothing of it
    def unexpected(request: Request, _error: Exception) -> Response:
        problem = Problem("something went wrong inside the service; its log says what, under the trace id of this request")
        return answer(problem, instance=request.url.path)


def page(code: str) -> str:
    """What a problem's `type` leads to; `NotFound` for a code that no release of ours gives."""
    kind = Problem.by_code.get(code)
    if kind is None:
        raise NotFound(f"there is no problem {code[:64]}", known=sorted(Problem.by_code))
    meaning = html.escape(inspect.cleandoc(kind.__dict__.get("__doc__") or kind.title))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{kind.code}</title></head><body>'
        f"<h1>{html.escape(kind.title)}</h1><p>Code <code>{kind.code}</code>, HTTP status {kind.status}.</p><p>{meaning}</p>"
        "</body></html>"
    )


def _of_validation(errors: Sequence[Mapping[str, Any]]) -> Problem:
    for error in errors:
        if error["type"] == "json_invalid":
            reason = error.get("ctx", {}).get("error", "unreadable")
            return Malformed(f"the body is not JSON: {reason} at character {error['loc'][-1]}; mend it and send it again")
    return InvalidInput.of_all([_field_error(error) for error in errors])


def _field_error(error: Mapping[str, Any]) -> dict[str, str]:
    context = error.get("ctx") or {}
    field = context.get("field") or _field(error["loc"])
    if "fix" in context:
        return {"field": field, "rule": context["rule"], "fix": context["fix"]}
    rule, fix = _FIXES.get(error["type"], (f"is wrong: {error['msg']}", "send what /openapi.json describes for it"))
    return {"field": field, "rule": rule, "fix": fix}


def _field(location: Sequence[str | int]) -> str:
    name = ""
    for part in location[1:]:
        name += f"[{part}]" if isinstance(part, int) else f".{part[:64]}" if name else part[:64]
    return name or str(location[0])


def _allowed(request: Request, routes: Sequence[BaseRoute]) -> str:
    """Every method of the path; the framework names only those of the first route that has it."""
    there = [route for route in routes if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in there for method in route.methods or ()}))


def _of_framework(request: Request, error: HTTPException, headers: Mapping[str, str]) -> Problem:
    if error.status_code == 404:
        return NotFound(f"nothing is served at {request.url.path[:200]}; /openapi.json lists what is")
    if error.status_code == 405:
        allowed = headers["Allow"]
        return MethodNotAllowed(f"{request.method[:16]} is not possible here; use {allowed}", allow=allowed)
    if error.status_code == 413:
        return TooLarge("the request is too large")
    if error.status_code < 500:
        return Malformed("the body cannot be read; send JSON")
    return Problem("the request could not be handled")
