"""Which tabs of the browser have which image open."""

from __future__ import annotations

import time

GONE = 15.0
"""Seconds after which a tab that has not been heard of is taken for closed."""


class OpenTabs:
    """The image that each tab shows, as far as the tabs say so every few seconds."""

    def __init__(self) -> None:
        """No tab is open."""
        self._seen: dict[str, tuple[str, float]] = {}

    def heard(self, tab: str, id: str) -> bool:
        """Note that a tab shows an image.

        Returns:
            Whether another tab shows it too.
        """
        now = time.monotonic()
        self._seen = {other: seen for other, seen in self._seen.items() if now - seen[1] < GONE}
        self._seen[tab] = id, now
        return any(other != tab and seen[0] == id for other, seen in self._seen.items())
