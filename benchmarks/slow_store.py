"""An object store that answers late: the listings, reads and writes of S3 over HTTP, in a process of its own.

It counts requests, and can hold many objects that share their content, so that 100,000 files need no memory.
"""

import asyncio
import bisect
import contextlib
import json
import multiprocessing
import os
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

BUCKET = "bucket"
_PAGE = 1000
"""Keys in one answer of a listing, as Amazon has them."""
_TIME = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True, slots=True)
class Alike:
    """Objects `name % number` with one content, listed with another size if `size` says so: only their end is there."""

    name: str
    count: int
    content: bytes
    size: int | None = None


class SlowStore:
    """The store as its user sees it."""

    def __init__(self, url: str):
        self._url = url

    def take_counts(self) -> Counter[str]:
        """Return the requests since the last call, by kind: LIST, HEAD, GET, PUT, DELETE."""
        with urllib.request.urlopen(f"{self._url}/-/counts") as answer:
            return Counter(json.load(answer))

    def put_alike(self, objects: Alike) -> None:
        """Add objects without a request for each."""
        head = json.dumps({"name": objects.name, "count": objects.count, "size": objects.size})
        request = urllib.request.Request(f"{self._url}/-/alike", objects.content, {"X-Alike": head}, method="PUT")
        urllib.request.urlopen(request).close()


@contextlib.contextmanager
def slow_store(delay_s: float) -> Iterator[SlowStore]:
    """Serve `s3://bucket` on this machine, where every answer takes `delay_s` at least."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, delay_s), daemon=True)
    server.start()
    try:
        url = f"http://127.0.0.1:{ours.recv()}"
        keys = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}
        os.environ.update({f"AWS_{key}": value for key, value in keys.items()} | {"AWS_EC2_METADATA_DISABLED": "true"})
        yield SlowStore(url)
    finally:
        server.terminate()
        server.join()


def _serve(ready: "multiprocessing.connection.Connection", delay_s: float) -> None:
    async def run() -> None:
        objects = _Objects()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(objects, delay_s), "127.0.0.1", 0, backlog=1024)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class _Objects:
    """Objects by key, in the order of keys."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.uploads: dict[str, dict[int, bytes]] = {}
        self._content: dict[str, tuple[int, bytes]] = {}
        """Size, and the content or the end of it."""
        self._keys: list[str] | None = None

    def put(self, key: str, content: bytes, size: int | None = None) -> None:
        self._content[key] = (len(content) if size is None else size, content)
        self._keys = None

    def remove(self, key: str) -> None:
        if self._content.pop(key, None) is not None:
            self._keys = None

    def find(self, key: str) -> tuple[int, bytes] | None:
        return self._content.get(key)

    def page(self, prefix: str, delimiter: str, after: str, most: int) -> tuple[list[str], list[str], str]:
        """Return keys, folders, and the last of them if there is more."""
        if self._keys is None:
            self._keys = sorted(self._content)
        keys: list[str] = []
        folders: list[str] = []
        at = bisect.bisect_left(self._keys, prefix) if not after else bisect.bisect_right(self._keys, after)
        last = ""
        while at < len(self._keys) and self._keys[at].startswith(prefix):
            if len(keys) + len(folders) == most:
                return keys, folders, last
            key = self._keys[at]
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end < 0:
                keys.append(key)
                last = key
                at += 1
            else:
                folder = key[: end + 1]
                folders.append(folder)
                last = folder + "\U0010ffff"
                at = bisect.bisect_right(self._keys, last)
        return keys, folders, ""


class _Connection(asyncio.Protocol):
    def __init__(self, objects: _Objects, delay_s: float):
        self._objects = objects
        self._delay_s = delay_s
        self._held = b""
        self._head: tuple[str, str, dict[str, str]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        while True:
            if self._head is None:
                head, end, rest = self._held.partition(b"\r\n\r\n")
                if not end:
                    return
                first, *lines = head.decode("latin-1").split("\r\n")
                method, target, _ = first.split(" ")
                fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                self._held, self._head = rest, (method, target, fields)
                if fields.get("expect"):
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            method, target, fields = self._head
            taken = _body_of(self._held, fields)
            if taken is None:
                return
            body, self._held = taken
            self._head = None
            self._answer_request(method, target, fields, body)

    def _answer_request(self, method: str, target: str, fields: Mapping[str, str], body: bytes) -> None:
        url = urlsplit(target)
        path = unquote(url.path)
        if path == "/-/counts":
            self._answer(200, json.dumps(self._objects.counts).encode(), delay_s=0)
            self._objects.counts.clear()
            return
        if path == "/-/alike":
            about = json.loads(fields["x-alike"])
            for number in range(about["count"]):
                self._objects.put(about["name"] % number, body, about["size"])
            self._answer(200, b"", delay_s=0)
            return
        key = path.removeprefix(f"/{BUCKET}").removeprefix("/")
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        kind = "LIST" if "list-type" in query else method
        self._objects.counts[kind] += 1
        if kind == "LIST":
            self._list(query)
        elif method in ("GET", "HEAD"):
            self._read(method, key, fields) if key else self._answer(200, b"")
        elif method == "PUT":
            if "partNumber" in query:
                self._objects.uploads[query["uploadId"]][int(query["partNumber"])] = body
            else:
                self._objects.put(key, body)
            self._answer(200, b"", ETag='"x"')
        elif method == "DELETE":
            self._objects.remove(key)
            self._answer(204, b"")
        else:
            self._answer(200, self._post(key, query, body))

    def _post(self, key: str, query: Mapping[str, str], body: bytes) -> bytes:
        uploads = self._objects.uploads
        if "uploads" in query:
            upload = str(len(uploads))
            uploads[upload] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return text.encode()
        if "uploadId" in query:
            parts = uploads[query["uploadId"]]
            self._objects.put(key, b"".join(parts[number] for number in sorted(parts)))
            return b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        for one in ElementTree.fromstring(body).iterfind(".//{*}Key"):
            self._objects.remove(str(one.text))
        return b"<DeleteResult></DeleteResult>"

    def _read(self, method: str, key: str, fields: Mapping[str, str]) -> None:
        found = self._objects.find(key)
        if found is None:
            self._answer(404, b"" if method == "HEAD" else b"<Error><Code>NoSuchKey</Code></Error>")
            return
        size, content = found
        if method == "HEAD":
            self._answer(200, b"", size=size, ETag='"x"', Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")
            return
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", fields.get("range", ""))
        first, last = (asked[1], asked[2]) if asked else ("0", "")
        begin = max(0, size - int(last)) if not first else int(first)
        end = min(size, int(last) + 1) if first and last else size
        missing = size - len(content)
        part = bytes(max(0, min(end, missing) - begin)) + content[max(0, begin - missing) : max(0, end - missing)]
        self._answer(206 if asked else 200, part, Content_Range=f"bytes {begin}-{end - 1}/{size}", ETag='"x"')

    def _list(self, query: Mapping[str, str]) -> None:
        most = min(_PAGE, int(query.get("max-keys", _PAGE)))
        after = query.get("continuation-token", "") or query.get("start-after", "")
        keys, folders, last = self._objects.page(query.get("prefix", ""), query.get("delimiter", ""), after, most)
        found = ((key, self._objects.find(key)) for key in keys)
        text = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{one[0] if one else 0}</Size><LastModified>{_TIME}"
            "</LastModified></Contents>"
            for key, one in found
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders)
        more = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if last else ""
        start = f"<IsTruncated>{str(bool(last)).lower()}</IsTruncated><KeyCount>{len(keys) + len(folders)}</KeyCount>"
        self._answer(200, f"<ListBucketResult>{start}{more}{text}</ListBucketResult>".encode())

    def _answer(
        self, status: int, body: bytes, *, size: int | None = None, delay_s: float | None = None, **fields: str
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if size is None else size}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        data = "\r\n".join([*lines, "", ""]).encode() + body
        delay_s = self._delay_s if delay_s is None else delay_s
        asyncio.get_running_loop().call_later(delay_s, self._transport.write, data)


def _body_of(held: bytes, fields: Mapping[str, str]) -> tuple[bytes, bytes] | None:
    """Return the body at the begin of some bytes, and what comes after it; None if it has not come whole yet."""
    if fields.get("transfer-encoding") == "chunked":
        taken = _without_chunks(held)
        if taken is None:
            return None
        body, rest = taken
    else:
        length = int(fields.get("content-length", 0))
        if len(held) < length:
            return None
        body, rest = held[:length], held[length:]
    if "aws-chunked" in fields.get("content-encoding", ""):
        # Amazon's own chunks, inside those of HTTP.
        inner = _without_chunks(body)
        assert inner is not None
        body = inner[0]
    return body, rest


def _without_chunks(held: bytes) -> tuple[bytes, bytes] | None:
    content, at = b"", 0
    while True:
        end = held.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(held[at:end].partition(b";")[0], 16)
        at = end + 2
        if not size:
            break
        if len(held) < at + size + 2:
            return None
        content += held[at : at + size]
        at += size + 2
    # Lines of checksums, the last of them empty.
    while (end := held.find(b"\r\n", at)) > at:
        at = end + 2
    return None if end < 0 else (content, held[end + 2 :])
