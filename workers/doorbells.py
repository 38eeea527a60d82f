"""The doorbells of captures: connected to those that may ring, for a connection to one that is gone tries for ever."""

from __future__ import annotations

from collections.abc import Iterable

from common import wire
from common.settings import Settings
from common.topology import doorbell


class Doorbells:
    """One socket that hears them all; to be told who there is."""

    def __init__(self, settings: Settings) -> None:
        self.socket = wire.subscriber([], ["doorbell"])
        self._settings = settings
        self._connected: frozenset[str] = frozenset()

    def listen(self, sources: Iterable[str]) -> None:
        """To these and no others from now on."""
        wanted = frozenset(wire.ipc(self._settings, doorbell(source)) for source in sources)
        for endpoint in wanted - self._connected:
            self.socket.connect(endpoint)
        for endpoint in self._connected - wanted:
            self.socket.disconnect(endpoint)
        self._connected = wanted
