"""Keeps every answer of the judges that cost something, in one SQLite file of a folder.

Any number of processes of one machine may use the folder at once. Each has one thread that writes; it does all that
waits for it in one transaction, so that many answers at once cost one flush of the disk. Readers never wait.

SQLite's locks and its shared memory work between processes of one machine. On a network file system they work for the
processes of one machine at most, and on some not at all: keep the folder on a local disk.
"""

import json
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from phf_ray.errors import ConfigError, DataError
from phf_ray.judging.owner import HEARTBEAT_S, Owner
from phf_ray.judging.question import Answer, Question

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]

STORE_FILE = "judgements.sqlite"
_APPLICATION, _VERSION = 0x7068666A, 1
"""`phfj` in ASCII, and the version of the tables below."""
_BUSY_S = 60.0
_MOST_AT_ONCE = 512
_TABLES = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, text TEXT NOT NULL, top_logprobs TEXT, prompt_tokens INTEGER,
    completion_tokens INTEGER, price REAL, seconds REAL NOT NULL, answered_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE owners (owner TEXT PRIMARY KEY, heard_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE calls (
    call INTEGER PRIMARY KEY, key TEXT NOT NULL, judge TEXT NOT NULL, owner TEXT NOT NULL, state TEXT NOT NULL,
    money INTEGER NOT NULL, tokens INTEGER NOT NULL, sent_at REAL NOT NULL, ended_at REAL
);
CREATE INDEX sent ON calls (owner) WHERE state = 'sent';
CREATE TABLE spent (money INTEGER NOT NULL, tokens INTEGER NOT NULL);
INSERT INTO spent VALUES (0, 0);
CREATE TABLE known (
    key TEXT PRIMARY KEY, annotator TEXT NOT NULL, preference REAL, error TEXT, price REAL, seconds REAL, raw TEXT
) WITHOUT ROWID;
"""


class Store:
    """The answers of one folder, which is created if it is missing."""

    def __init__(self, folder: str | Path):
        if "://" in str(folder):
            raise ConfigError(f"--cache {folder}: the cache of judgements needs a folder on a local disk, not a URL")
        self.folder = Path(folder)
        self.file = self.folder / STORE_FILE
        self._readers = threading.local()
        self._is_closed = False
        with _errors(self.file):
            self.folder.mkdir(parents=True, exist_ok=True)
            connection = _connect(self.file)
            _prepare(connection, self.file)
            connection.close()
        self.owner = Owner(self.folder)
        self._work: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="judgements", daemon=True)
        self._writer.start()

    def find(self, key: str) -> Answer | None:
        row = self.reader.execute(
            "SELECT text, top_logprobs, prompt_tokens, completion_tokens, price, seconds FROM answers WHERE key = ?",
            (key,),
        ).fetchone()
        if row is None:
            return None
        text, logprobs, *rest = row
        return Answer(text, None if logprobs is None else tuple(map(tuple, json.loads(logprobs))), *rest)

    @property
    def reader(self) -> sqlite3.Connection:
        """A connection of this thread that only reads."""
        found: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if found is None:
            found = self._readers.connection = _connect(self.file)
            found.execute("PRAGMA query_only = 1")
        return found

    def submit(self, work: Work[Result]) -> Future[Result]:
        """Have the writing thread do the work in a transaction. When the result is there, it is on the disk."""
        future: Future[Result] = Future()
        assert not self._is_closed, f"{self.folder} was closed"
        self._work.put((work, future))
        return future

    def close(self) -> None:
        """Wait for all writing to end. What this process claimed is free again."""
        if not self._is_closed:
            self._is_closed = True
            self._work.put(None)
            self._writer.join()
            self.owner.leave()

    def _write(self) -> None:
        connection = _connect(self.file)
        heard_at: float | None = None
        while True:
            try:
                first = self._work.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                first = (do_nothing, Future())
            batch = [first]
            while len(batch) < _MOST_AT_ONCE and not self._work.empty():
                batch.append(self._work.get())
            todo = [one for one in batch if one is not None]
            if heard_at is None or time.monotonic() - heard_at >= HEARTBEAT_S:
                heard_at = time.monotonic()
                todo.insert(0, (self.owner.is_here, Future()))
            if None in batch:
                todo.append((self.owner.is_gone, Future()))
            _do(todo, connection, self.file)
            if None in batch:
                connection.close()
                return


def is_answered(connection: sqlite3.Connection, key: str) -> bool:
    return connection.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone() is not None


def keep_answer(connection: sqlite3.Connection, key: str, question: Question, answer: Answer) -> None:
    """Store an answer. The first one of a key stays."""
    connection.execute(
        "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key,
            question.judge,
            answer.text,
            None if answer.top_logprobs is None else json.dumps(answer.top_logprobs),
            answer.prompt_tokens,
            answer.completion_tokens,
            answer.price,
            answer.seconds,
            time.time(),
        ),
    )


def do_nothing(connection: sqlite3.Connection) -> None:
    """Work that only shows that all before it is done."""


def _do(todo: list[tuple[Work[Any], Future[Any]]], connection: sqlite3.Connection, file: Path) -> None:
    """Do all of this in one transaction. Work that fails leaves no trace, and does no harm to the rest."""
    wanted = [(work, future) for work, future in todo if future.set_running_or_notify_cancel()]
    results: list[tuple[Future[Any], Any, BaseException | None]] = []
    try:
        with _errors(file):
            connection.execute("BEGIN IMMEDIATE")
            for work, future in wanted:
                connection.execute("SAVEPOINT work")
                try:
                    results.append((future, work(connection), None))
                except Exception as error:  # noqa: BLE001  raised again where the work came from
                    connection.execute("ROLLBACK TO work")
                    results.append((future, None, error))
                connection.execute("RELEASE work")
            connection.execute("COMMIT")
    except Exception as error:  # noqa: BLE001  raised again where the work came from
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        results = [(future, None, error) for _, future in wanted]
    for future, result, failed in results:
        if failed is None:
            future.set_result(result)
        else:
            future.set_exception(failed)


def _connect(file: Path) -> sqlite3.Connection:
    # Transactions are begun by hand: Python's own begin too late for a claim.
    connection = sqlite3.connect(file, timeout=_BUSY_S, isolation_level=None)
    # An answer that was paid for must survive a power failure, too.
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _prepare(connection: sqlite3.Connection, file: Path) -> None:
    """Create the tables in a new file. Raises ConfigError if the file is another's, or of another version."""
    if _marks(connection) == (0, 0) and not _has_tables(connection):
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise ConfigError(f"{file}: this file system can't hold the cache of judgements; give a --cache on another")
        connection.execute("BEGIN IMMEDIATE")
        # Another process may have done it meanwhile.
        if not _has_tables(connection):
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
    application, version = _marks(connection)
    if application != _APPLICATION:
        raise ConfigError(f"{file} is a database of something else; give another --cache")
    if version != _VERSION:
        raise ConfigError(
            f"{file} is a cache of version {version}, and this phf-ray reads version {_VERSION}; give another --cache, "
            "or use the phf-ray that wrote it. Nothing in it was changed"
        )


def _marks(connection: sqlite3.Connection) -> tuple[int, int]:
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    return application, version


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None


@contextmanager
def _errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise DataError(
            f"{file} can't be used: {error}; check the disk and its permissions. The cache of judgements needs a local "
            "disk, where one process at a time can lock it"
        ) from error
