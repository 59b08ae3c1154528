"""Who claims questions: a process, which others can tell to be alive.

A claim is good as long as its owner lives. The kernel says so: an owner holds a lock on a file, which ends with the
process, however that ends. Where a lock says nothing, as between machines, the owner's heartbeat has to be recent.
"""

import fcntl
import os
import sqlite3
import time
import uuid
from pathlib import Path

HEARTBEAT_S = 10.0
CLAIM_S = 60.0
"""An owner that was not heard for so long has lost its claims: it may be stopped, or on a machine that is gone."""


class Owner:
    """This process, or one of its stores, as an owner of claims."""

    def __init__(self, folder: Path):
        self.name = uuid.uuid4().hex
        self._folder = folder / "owners"
        self._folder.mkdir(exist_ok=True)
        for left in self._folder.iterdir():
            _is_held(left)
        self._lock = _hold(self._folder / self.name)

    def is_here(self, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT OR REPLACE INTO owners VALUES (?, ?)", (self.name, time.time()))

    def is_gone(self, connection: sqlite3.Connection) -> None:
        """Free all that this owner claims."""
        _free_all(connection, self.name)

    def leave(self) -> None:
        (self._folder / self.name).unlink(missing_ok=True)
        os.close(self._lock)

    def claim(self, connection: sqlite3.Connection, key: str) -> bool:
        """Claim a question, or return False because an owner that lives has it. A dead owner's claims are freed."""
        row = connection.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
        if row is not None and self.is_alive(connection, row[0]):
            return False
        if row is not None:
            _free_all(connection, row[0])
        connection.execute("INSERT INTO claims VALUES (?, ?)", (key, self.name))
        return True

    def free(self, connection: sqlite3.Connection, key: str) -> None:
        connection.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self.name))

    def bury_the_dead(self, connection: sqlite3.Connection) -> None:
        """Free the claims of dead owners. What their calls may have cost counts as spent."""
        for (owner,) in connection.execute("SELECT DISTINCT owner FROM calls WHERE state = 'sent'").fetchall():
            if not self.is_alive(connection, owner):
                _free_all(connection, owner)

    def is_alive(self, connection: sqlite3.Connection, owner: str) -> bool:
        if owner == self.name:
            return True
        row = connection.execute("SELECT heard_at FROM owners WHERE owner = ?", (owner,)).fetchone()
        if row is None or time.time() - row[0] > CLAIM_S:
            return False
        return _is_held(self._folder / owner)


def _hold(file: Path) -> int:
    """Create and lock a file, and return its descriptor."""
    while True:
        lock = os.open(file, os.O_CREAT | os.O_RDWR, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Somebody who cleans up may have had it for a moment, before the lock.
        if file.exists() and os.fstat(lock).st_ino == file.stat().st_ino:
            return lock
        os.close(lock)


def _is_held(file: Path) -> bool:
    """Whether a process holds the file. If none does, it is removed."""
    try:
        lock = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        file.unlink(missing_ok=True)
        return False
    finally:
        os.close(lock)


def _free_all(connection: sqlite3.Connection, owner: str) -> None:
    connection.execute("DELETE FROM claims WHERE owner = ?", (owner,))
    connection.execute(
        "UPDATE calls SET state = 'lost', ended_at = ? WHERE owner = ? AND state = 'sent'", (time.time(), owner)
    )
    connection.execute("DELETE FROM owners WHERE owner = ?", (owner,))
