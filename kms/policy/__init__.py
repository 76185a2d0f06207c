"""Policies: documents, not code. Pure."""
