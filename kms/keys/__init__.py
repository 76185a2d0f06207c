"""What may happen to keys: leases (and later lifecycle, rotation, migration) as pure functions."""
