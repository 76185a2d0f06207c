"""Logs without a service: copies of them in a folder, and Go's reference implementation to verify one."""
