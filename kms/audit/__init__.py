"""The audit log: what an entry says. How entries form a tree is keypeer.wire.tlog's matter. Pure."""
