"""The trainer: trees in, steps out. It knows no job, no database and no network."""
