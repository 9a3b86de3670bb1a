"""Reading values of coordination that anybody may have written: what cannot be read is logged, and never stops the rest."""

from typing import TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from sanderling.coordination.base import Entry

Value = TypeVar("Value", bound=BaseModel)
log = structlog.get_logger(__name__)


def value_of(entry: Entry, kind: type[Value]) -> Value | None:
    """The entry's value; None when it is not one of that kind."""
    try:
        return kind.model_validate_json(entry.value)
    except ValidationError as error:
        log.error("key cannot be read", key=entry.key, errors=error.error_count())
        return None
