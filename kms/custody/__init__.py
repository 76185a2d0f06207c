"""Custody of keys: the port that flows speak to, and its client of the HSM workers."""
