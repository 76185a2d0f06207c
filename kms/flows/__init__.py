"""Use cases, one a file. A flow fetches, calls the pure checks, and commits state and audit entry together."""
