"""A transparency log's formats: RFC 6962 hashing, and C2SP tlog-tiles, tlog-checkpoint, signed-note, tlog-cosignature.
Pure."""
