"""The part of Amazon's S3 that Arrow's client uses, in memory: objects, listings, uploads in parts."""

import contextlib
import io
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

MODIFIED = 1_760_000_000


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: the second would wait 40 ms for the first to be acknowledged.
    wbufsize = -1
    objects: dict[str, bytes]
    parts: dict[str, dict[int, bytes]]
    requests: list[str]

    def log_message(self, format, *args):
        pass

    def handle_expect_100(self):
        goes_on = super().handle_expect_100()
        # The client waits a second for this before it sends the body all the same.
        self.wfile.flush()
        return goes_on

    def _begin(self) -> tuple[str, dict[str, str], bytes]:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        name = f"{unquote(url.path)[1:]}{query.get('prefix', '')}"
        self.requests.append(f"{'LIST' if 'list-type' in query else self.command} {name}")
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = _without_chunks(self.rfile)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        # Amazon's own chunks, inside those of HTTP.
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = _without_chunks(io.BytesIO(body))
        return unquote(url.path)[1:], query, body

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self) -> None:
        self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self):
        name, _, _ = self._begin()
        if "/" not in name:
            self._answer(200)
        elif name not in self.objects:
            self._missing()
        else:
            size = str(len(self.objects[name]))
            self._answer(200, Content_Length=size, ETag='"x"', Last_Modified=formatdate(MODIFIED, usegmt=True))

    def do_GET(self):
        name, query, _ = self._begin()
        if "list-type" in query:
            self._list(name.strip("/"), prefix=query.get("prefix", ""), delimiter=query.get("delimiter", ""))
        elif name not in self.objects:
            self._missing()
        else:
            content = self.objects[name]
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            end = min(len(content), int(last) + 1 if last else len(content))
            headers = {"Content_Range": f"bytes {first}-{end - 1}/{len(content)}", "ETag": '"x"'}
            self._answer(206 if "Range" in self.headers else 200, content[int(first) : end], **headers)

    def _list(self, bucket: str, *, prefix: str, delimiter: str) -> None:
        keys, folders = [], set()
        for name in sorted(self.objects):
            key = name.removeprefix(f"{bucket}/")
            if name.startswith(f"{bucket}/{prefix}"):
                head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
                if cut:
                    folders.add(f"{prefix}{head}/")
                else:
                    keys.append(key)
        time = "2026-01-01T00:00:00.000Z"
        text = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[f'{bucket}/{key}'])}</Size>"
            f"<LastModified>{time}</LastModified></Contents>"
            for key in keys
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders))
        count = len(keys) + len(folders)
        start = f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{count}</KeyCount>"
        self._answer(200, f"{start}{text}</ListBucketResult>".encode(), Content_Type="application/xml")

    def do_PUT(self):
        name, query, body = self._begin()
        if "partNumber" in query:
            self.parts[query["uploadId"]][int(query["partNumber"])] = body
        else:
            self.objects[name] = body
        self._answer(200, ETag='"x"')

    def do_POST(self):
        name, query, body = self._begin()
        if "uploads" in query:
            upload = f"upload-{len(self.parts)}"
            self.parts[upload] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        elif "uploadId" in query:
            # Only now there is an object.
            parts = self.parts[query["uploadId"]]
            self.objects[name] = b"".join(parts[number] for number in sorted(parts))
            text = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        else:
            for key in ElementTree.fromstring(body).iterfind(".//{*}Key"):
                self.objects.pop(f"{name.strip('/')}/{key.text}", None)
            text = "<DeleteResult></DeleteResult>"
        self._answer(200, text.encode(), Content_Type="application/xml")

    def do_DELETE(self):
        name, _, _ = self._begin()
        self.objects.pop(name, None)
        self._answer(204)


class _Refusing(_Handler):
    """The store for a client with unknown credentials."""

    def _refuse(self) -> None:
        self._begin()
        self._answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    do_HEAD = do_GET = do_PUT = do_POST = do_DELETE = _refuse


def _without_chunks(stream: IO[bytes]) -> bytes:
    """Return the content of chunks, each of which is a line with its size, then its content.

    An empty chunk and lines of checksums, the last of them empty, end the stream.
    """
    content = b""
    while size := int(stream.readline().partition(b";")[0], 16):
        content += stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass
    return content


@contextlib.contextmanager
def serving(*, refuses: bool = False, requests: list[str] | None = None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the store's URL, and its objects by `bucket/key`. `refuses`: it answers 403 to every request.

    `requests`: gets the method, or LIST, and the name of each request.
    """
    seen = [] if requests is None else requests
    values = {"objects": {}, "parts": {}, "requests": seen}
    handler = type("Handler", (_Refusing if refuses else _Handler,), values)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.objects
        server.shutdown()
