"""The audit log: what an entry says, and how entries are chained. Pure."""
