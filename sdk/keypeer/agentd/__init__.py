"""`keypeer agent run`: the daemon that keeps a host's keys while the host is trusted, and not a second longer.

judge      whether a key is kept: a pure function
ledger     what is held, in memory and on disk (never a key)
memory     where keys lie: memfd_secret(2), else locked memory
hooks      the operator's programs
local      the Unix socket for hypervisor helpers, both ends
settings   agentd.toml
notify     sd_notify(3)
daemon     what ties them together
"""
