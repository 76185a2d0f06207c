"""Evidence appraised (RFC 9334): bytes and ``now`` in, an ``Appraisal`` or every reason against it out. Pure."""
