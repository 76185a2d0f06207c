"""Fleet events for orchestrators that would rather be called."""
