"""What is wrong with an image."""

from __future__ import annotations

from keypeer.errors import KeypeerClientError


class ImageError(KeypeerClientError):
    """Not an image, another VM's, or changed since it was written (image.*). No byte that failed was given out."""
