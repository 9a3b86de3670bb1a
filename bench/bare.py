"""The baseline of accepting: a bare FastAPI that stores one row for each POST, on the same database with the same durability.

`python -m bench.bare FILE PORT` serves it.
"""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import JSON, Column, Integer, MetaData, String, Table, create_engine, event, insert

ROWS = Table("rows", MetaData(), Column("id", Integer, primary_key=True), Column("name", String), Column("body", JSON))


class Row(BaseModel):
    name: str
    size_bytes: int


def app(file: str) -> FastAPI:
    engine = create_engine(f"sqlite:///{file}", pool_size=8)

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _record: object) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    ROWS.metadata.create_all(engine)
    served = FastAPI()

    @served.post("/rows", status_code=201)
    def create(row: Row) -> dict[str, Any]:
        with engine.begin() as connection:
            made = connection.execute(insert(ROWS).values(name=row.name, body=row.model_dump()))
            assert made.inserted_primary_key is not None
            return {"id": made.inserted_primary_key[0]}

    return served


if __name__ == "__main__":
    uvicorn.run(app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="warning")
