"""The fleet's store: SQLite by default, any database that SQLAlchemy knows by URL, migrated by Alembic."""
