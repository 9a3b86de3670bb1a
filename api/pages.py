"""Lists, a page at a time: a page goes on after the last thing of the one before, whatever was added or removed meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Query, Request

from api.context import ContextOf
from sanderling.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Page:
    """The bounds of a page, and the request that its next one repeats."""

    request: Request
    limit: int
    marker: str | None

    def of(self, noun: str, rows: Sequence[Any], *, marker: str | None) -> dict[str, Any]:
        """The body: the rows, and the link to what follows `marker`, or null when a page was not filled."""
        filled = len(rows) == self.limit and marker is not None
        return {noun: list(rows), "next": link(self.request, limit=self.limit, marker=marker) if filled else None}


def link(request: Request, **changed: Any) -> str:
    """The same request with these parameters instead of its own."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in changed]
    return f"{request.url.path}?{urlencode([*kept, *changed.items()])}"


def _limit(context: ContextOf, limit: Annotated[int | None, Query(ge=1, description="Most rows on the page")] = None) -> int:
    most = context.settings.api.page_max
    if limit is not None and limit > most:
        raise InvalidInput.of("limit", f"is more than {most}", f"ask for at most {most} and follow the next link")
    return limit or min(context.settings.api.page_default, most)


LimitOf = Annotated[int, Depends(_limit)]


def _page(
    request: Request,
    limit: LimitOf,
    marker: Annotated[str | None, Query(max_length=255, description="From the next link of the page before")] = None,
) -> Page:
    return Page(request, limit, marker)


PageOf = Annotated[Page, Depends(_page)]
