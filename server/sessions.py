"""Which nodes are connected, and the queue of small tasks for each.

A node is connected while its Watch stream is open. A second stream of the same node takes the
place of the first, which mostly belongs to a connection that has died without anybody noticing. A
stream that took a place so and loses it the same way tells of two nodes with one identity: each
comes back as soon as the other has taken its place.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from tacit.protos.fleet_pb2 import Draining, Heartbeat, Revoked, Task

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_QUEUED = 10_000  # a node that reads nothing is cut off, instead of filling the memory


class Session:
    """One open Watch stream.

    Attributes:
        taken: how many streams in turn have taken the place of one that was open.
        replaced: whether another stream has taken this one's place.
    """

    def __init__(self, node_id: int, *, taken: int = 0) -> None:
        self.node_id = node_id
        self.taken = taken
        self.closed = False
        self.replaced = False
        self._tasks: deque[Task] = deque()
        self._changed = asyncio.Event()

    def send(self, task: Task) -> None:
        """Queue a task; a session that is too far behind is closed."""
        if len(self._tasks) >= MAX_QUEUED:
            self.close()
        elif not self.closed:
            self._tasks.append(task)
            self._changed.set()

    def close(self) -> None:
        """End the stream once what is queued has been sent."""
        self.closed = True
        self._changed.set()

    async def next(self, heartbeat_s: float) -> Task | None:
        """Return the next task, a heartbeat when it was quiet, or None at the end."""
        if not self._tasks and not self.closed:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), heartbeat_s)
            except TimeoutError:
                return Task(heartbeat=Heartbeat())
        return self._tasks.popleft() if self._tasks else None


class Sessions:
    """All open Watch streams, by node."""

    def __init__(self) -> None:
        self._sessions: dict[int, Session] = {}
        self._listeners: list[Callable[[int, bool], None]] = []

    def listen(self, listener: Callable[[int, bool], None]) -> None:
        """Call ``listener(node_id, connected)`` at each change."""
        self._listeners.append(listener)

    def open(self, node_id: int) -> Session:
        """Begin a stream."""
        old, taken = self._sessions.get(node_id), 0
        if old is not None and not old.closed:
            old.replaced, taken = True, old.taken + 1
            old.close()
        session = self._sessions[node_id] = Session(node_id, taken=taken)
        self._tell(node_id, connected=True)
        return session

    def end(self, session: Session) -> None:
        """Note that a stream has ended, however it did."""
        session.close()
        if self._sessions.get(session.node_id) is session:
            del self._sessions[session.node_id]
            self._tell(session.node_id, connected=False)

    def connected(self, node_id: int) -> bool:
        """Tell whether a node is connected."""
        return node_id in self._sessions

    def count(self) -> int:
        """Return how many nodes are connected."""
        return len(self._sessions)

    def node_ids(self) -> list[int]:
        """Return the connected nodes."""
        return sorted(self._sessions)

    def send(self, node_id: int, task: Task) -> None:
        """Queue a task for a node, if it is connected; it asks again when it comes back."""
        session = self._sessions.get(node_id)
        if session is not None:
            session.send(task)

    def revoke(self, node_id: int) -> None:
        """Tell a node that it is out, and end its stream."""
        session = self._sessions.get(node_id)
        if session is not None:
            session.send(Task(revoked=Revoked()))
            session.close()

    def drain(self) -> None:
        """Tell every node that no new rounds start here."""
        for session in self._sessions.values():
            session.send(Task(draining=Draining()))

    def close(self) -> None:
        """End every stream."""
        for session in list(self._sessions.values()):
            session.close()

    def _tell(self, node_id: int, *, connected: bool) -> None:
        for listener in self._listeners:
            listener(node_id, connected)
