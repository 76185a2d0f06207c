"""Copies of the service's audit log in a folder (C2SP tlog-tiles): made, resumed and verified without trust in the
service."""

from __future__ import annotations

from keypeer.logcopy.export import export
from keypeer.logcopy.folder import LogFolder
from keypeer.logcopy.verify import Finding, Verdict, verify

__all__ = ["Finding", "LogFolder", "Verdict", "export", "verify"]
