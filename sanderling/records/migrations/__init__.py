"""Alembic's revisions of the records. They run in process (`Records.migrate`), so there is no alembic.ini."""
