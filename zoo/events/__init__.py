"""The event log: its schema, ingest, Delta table, dictionaries, entity tables and sorted index. Knows no Feast."""
