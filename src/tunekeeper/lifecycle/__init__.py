"""Which model lives until when, and what replaces it: events, the catalog, the policy."""
