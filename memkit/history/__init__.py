"""What happened to keys: RDB files, append-only files, replication, tracking, the ledger and the fate of a session."""
