"""Structured logs: one line an event, with the operation and trace it belongs to; JSON for machines, columns for people."""

import logging
import sys
from typing import TextIO

import structlog

from sanderling.settings import General


def configure(general: General, *, process: str, to: TextIO | None = None) -> None:
    """Send structlog and the libraries' own logging to one place (standard error) in one form. Call once, at the entry point."""
    stream = to or sys.stderr
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(general.log_level)),
    )
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if general.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(general.log_level)
    for chatty in (
        "amqp",
        "kombu",
        "oslo.messaging",
        "oslo_messaging",
        "urllib3",
        "httpx",
        "alembic",
        "pyroute2",
        "uvicorn.access",
    ):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.contextvars.bind_contextvars(process=process, node=general.node)
