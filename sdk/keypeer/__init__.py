"""keypeer SDK."""
