"""Messages that promise that something is kept, held until it is.

Nobody may hear of a vote, a term one stands for, an entry held or a snapshot installed before it
survives a power cut. So such a message is held until the sync that covers everything noted when it
was made has returned; with nothing unsynced it leaves at once. They leave in the order they were made.

Why a message may leave late, whatever happened meanwhile (a newer term, entries cut again, a link that
broke and came back): the history in which every change is durable at once and the network is slow is
one that Raft allows, and nobody can tell this one from it. A message leaves only when every change
before it is durable, so a power cut leaves a state at or after the one that anybody was told of. A vote
of an older term that leaves in a newer one is true: this node gave it, and the newer term, which is
durable by then, keeps it from voting again in the older. The receiver drops what is of an older term.
A link that is down drops what is sent on it, as any message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ringraft.consensus.replog.codec import Message, encode
from ringraft.consensus.replog.library import LogHost, LogStore


class Promises:
    """What waits for the journal's syncs, in order."""

    def __init__(self, store: LogStore, host: LogHost) -> None:
        self._store = store
        self._host = host
        self._held: deque[tuple[int, Callable[[], None]]] = deque()
        """(how much must be synced first, what to do then)"""

    def make(self, peer_id: str, message: Message) -> None:
        """Send ``message`` once all that was noted by now is durable."""
        frame = encode(message)
        self.when_kept(lambda: self._host.send(peer_id, frame))

    def when_kept(self, act: Callable[[], None]) -> None:
        """Call ``act`` once all that was noted by now is durable; at once if it is."""
        written = self._store.written
        if not self._held and self._store.synced >= written:
            act()
        else:
            self._held.append((written, act))

    def release(self) -> None:
        """Let go of what the journal has synced by now."""
        synced = self._store.synced
        while self._held and self._held[0][0] <= synced:
            self._held.popleft()[1]()
