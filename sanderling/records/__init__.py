"""The records: operations, the index of disks, subnets, tokens, history. SQLAlchemy 2 over SQLite (WAL) or PostgreSQL."""
