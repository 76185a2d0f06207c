"""Commands that touch the service's own files: serve, init, doctor. `keypeer` finds them by entry points."""
