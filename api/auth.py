"""Who asks, and whether they may. A route names its rule here; one that names none keeps the process from starting."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_origin

import structlog
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from api import rules
from api.context import Context, ContextOf
from api.policy import RULES
from sanderling.errors import InvalidInput, SettingsRefused, Unauthenticated, Unavailable
from sanderling.records import tokens
from sanderling.records.tokens import Role, Token

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """A token that is valid; `name` is what the history calls its bearer."""

    name: str
    role: Role


class Allowed:
    """A route's dependency: the caller, once token and rule have been checked."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def __call__(self, request: Request, context: ContextOf) -> Caller:
        caller = _caller(context, request)
        context.policy.check(self.rule, caller.role)
        _check_parameters(request)
        return caller


def everybody(request: Request) -> None:
    """The dependency of a route that is open to all, with or without a token."""
    _check_parameters(request)


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """`SettingsRefused` when a route names no rule, or one that the policy does not know, or when a rule has no route."""
    known, used = {rule.name for rule in RULES}, set()
    for route in routes:
        guards = _guards(route)
        rules = [guard.rule for guard in guards if isinstance(guard, Allowed)]
        name = getattr(route, "path", route)
        if len(rules) + guards.count(everybody) != 1:
            raise SettingsRefused(f"the route {name} must name one rule, or say that it is open to everybody")
        if not known.issuperset(rules):
            raise SettingsRefused(f"the route {name} names the rule {rules[0]}, which the policy does not have")
        used.update(rules)
    if known - used:
        raise SettingsRefused(f"the policy has rules that no route asks for: {', '.join(sorted(known - used))}")


def guarded_routes(routes: Iterable[BaseRoute]) -> set[tuple[str, str]]:
    """Method and path of every route that needs a token."""
    return {
        (method, route.path)
        for route in routes
        if isinstance(route, APIRoute) and any(isinstance(guard, Allowed) for guard in _guards(route))
        for method in route.methods or ()
    }


def _guards(route: BaseRoute) -> list[Any]:
    return [dependency.call for dependency in route.dependant.dependencies] if isinstance(route, APIRoute) else []


def _caller(context: Context, request: Request) -> Caller:
    now = context.clock.wall()
    secret = bearer(request)
    with context.records.read() as session:
        token = tokens.authenticate(session, secret, now=now)
    if token is None:
        raise Unauthenticated("the token is not known or has expired; ask an administrator for one (sanderling token create)")
    if tokens.use_is_due(token, now=now):
        _note_use(context, token)
    return Caller(token.name, token.role)


def _note_use(context: Context, token: Token) -> None:
    """Best effort: who may ask must not hang on whether the records can be written now."""
    try:
        with context.records.begin() as session:
            tokens.note_use(session, token.id, now=context.clock.wall())
    except Unavailable as problem:
        log.warning("token's use not noted", token=token.name, reason=problem.detail)


def bearer(request: Request) -> str:
    """The token as it was sent, whatever it is worth; `Unauthenticated` when none was."""
    authorization = request.headers.get("authorization")
    if authorization is None:
        plain = request.headers.get("x-auth-token")
        if plain:
            return plain
        raise Unauthenticated("a token is needed; send it as Authorization: Bearer TOKEN, or as X-Auth-Token")
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthenticated("this way of saying who you are is not known; send Authorization: Bearer TOKEN")
    return secret.strip()


def _check_parameters(request: Request) -> None:
    """A misspelt ?dry_run must not turn into the real thing, and what is looked for must mean the same in every store."""
    known = _parameters(request.scope["route"].dependant)
    for name in request.query_params:
        if name not in known:
            raise InvalidInput.of(
                name[:64],
                "is not a parameter of this request",
                f"leave it out; known are: {', '.join(sorted(known)) or 'none'}",
            )
        if len(request.query_params.getlist(name)) > 1 and not known[name]:
            raise InvalidInput.of(name, "is given more than once", "give it once")
    for name, value in (*request.query_params.multi_items(), *request.path_params.items()):
        rule = rules.unkept_character(value)
        if rule is not None:
            raise InvalidInput.of(name, rule, rules.NOT_KEPT)


def _parameters(dependant: Any) -> dict[str, bool]:
    """Each with whether it may be given more than once."""
    names = {field.alias: get_origin(field.field_info.annotation) is list for field in dependant.query_params}
    for inner in dependant.dependencies:
        names |= _parameters(inner)
    return names
