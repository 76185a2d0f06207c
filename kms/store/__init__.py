"""Stores: the port, and one module a backend."""
