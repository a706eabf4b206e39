"""What lasts: rows in SQLite (`db`, `store`) and bytes under their hash (`blobs`)."""
