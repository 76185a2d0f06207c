"""keypeer's service: releases VM keys to hosts that prove their boot state and their place."""

__version__ = "0.1.0"
