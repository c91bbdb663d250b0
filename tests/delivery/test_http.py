"""Blocks over HTTP: ranges of any server, and nothing that a rude one says or does gets through."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.delivery.files import FileBlob
from edgeslm.delivery.http_server import PackageServer, by_sha256, in_directory, requested_range
from edgeslm.delivery.http_source import HttpSource
from edgeslm.errors import (
    ConfigError,
    DeliveryCancelledError,
    LyingSourceError,
    SourceError,
    SourceMissingError,
)
from edgeslm.schema.delivery import BLOCK_BYTES, BlobRef

SIZE = 10 * BLOCK_BYTES + 99


@pytest.fixture
def blob(library):
    return library.add(SIZE)


@pytest.fixture
def server(library):
    with PackageServer(by_sha256(in_directory(library.directory))) as server:
        yield server


def take(
    source: HttpSource, blob: BlobRef, *wanted: range, received: Callable[[int], None] = len
) -> dict[int, bytes]:
    """All that comes, with the source closed afterwards."""
    counted = received if received is not len else lambda _: None
    with closing(source):
        return {block.number: block.data for block in source.blocks(blob, wanted or [range(11)], counted)}


def parts(data: bytes, *wanted: range) -> dict[int, bytes]:
    return {index: data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES] for run in wanted for index in run}


class RudeServer:
    """Answers the n-th connection with what the n-th script does to it; the last script again and again."""

    def __init__(self, *scripts: Callable[[socket.socket, bytes], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._scripts = scripts
        self.requests: list[bytes] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        count = 0
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(count, len(self._scripts) - 1)]
            count += 1
            threading.Thread(target=self._answer, args=(connection, script), daemon=True).start()

    def _answer(self, connection: socket.socket, script: Callable[[socket.socket, bytes], None]) -> None:
        with connection:
            try:
                while request := connection.recv(65_536):
                    self.requests.append(request)
                    script(connection, request)
            except OSError:
                pass

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def rude():
    servers = []

    def make(*scripts):
        servers.append(RudeServer(*scripts))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def asked(request: bytes) -> tuple[int, int]:
    first, last = request.split(b"bytes=")[1].split(b"\r\n")[0].split(b"-")
    return int(first), int(last) + 1


def head(status: str, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def polite(data: bytes, cut: int | None = None, close: bool = False):
    """Answers with the range; closes after `cut` bytes of a body, if given."""

    def script(connection, request):
        start, end = asked(request)
        answer = head(
            "206 Partial Content", Content_Range=f"bytes {start}-{end - 1}/{SIZE}", Content_Length=end - start
        )
        connection.sendall(answer + data[start : end if cut is None else min(end, start + cut)])
        if cut is not None or close:
            connection.close()

    return script


def says(status: str, body: bytes = b"", **headers: object):
    """Always gives that answer, and hangs up."""

    def script(connection, _request):
        connection.sendall(head(status, **headers) + body)
        connection.close()

    return script


# --- right ones ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted", [[range(11)], [range(3)], [range(10, 11)], [range(1, 2), range(4, 7), range(9, 11)], []]
)
def test_any_runs_of_blocks_come_from_a_server_of_ours(server, library, blob, wanted):
    source = HttpSource(server.url)
    with closing(source):
        got = {block.number: block.data for block in source.blocks(blob, wanted, lambda _: None)}
    assert got == parts(library.data(blob.sha256), *wanted)


def test_one_connection_serves_many_runs(rude, library, blob):
    server = rude(polite(library.data(blob.sha256)), says("500 No"))
    got = take(HttpSource(server.url), blob, range(2), range(4, 5), range(9, 11))
    assert got.keys() == {0, 1, 4, 9, 10}
    assert [asked(request)[0] // BLOCK_BYTES for request in server.requests] == [0, 4, 9]


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again(rude, library, blob):
    data = library.data(blob.sha256)
    server = rude(polite(data, close=True))
    source = HttpSource(server.url)
    with closing(source):
        for index in range(5):
            (block,) = source.blocks(blob, [range(index, index + 1)], lambda _: None)
            assert block.number == index


def test_what_came_of_a_block_is_not_fetched_again_after_a_break(rude, library, blob):
    data = library.data(blob.sha256)
    server = rude(polite(data, cut=BLOCK_BYTES + 1000), polite(data))
    source = HttpSource(server.url)
    blocks = source.blocks(blob, [range(11)], lambda _: None)
    got = dict([next(blocks)])
    with pytest.raises(SourceError):
        next(blocks)
    got.update(take(source, blob, range(1, 11)))
    assert got == parts(data, range(11))
    assert asked(server.requests[1]) == (BLOCK_BYTES + 1000, SIZE)


def test_kept_bytes_belong_to_one_block_of_one_file(rude, library, blob):
    data = library.data(blob.sha256)
    server = rude(polite(data, cut=1000), polite(data))
    source = HttpSource(server.url)
    with pytest.raises(SourceError):
        list(source.blocks(blob, [range(11)], lambda _: None))
    assert take(source, blob, range(5, 6)) == parts(data, range(5, 6))


def test_a_server_may_answer_with_less_than_was_asked_for(rude, library, blob):
    data = library.data(blob.sha256)

    def stingy(connection, request):
        start, end = asked(request)
        end = min(end, start + 100_000)
        connection.sendall(
            head("206 OK", Content_Range=f"bytes {start}-{end - 1}/*", Content_Length=end - start)
            + data[start:end]
        )

    assert take(HttpSource(rude(stingy).url), blob) == parts(data, range(11))


def test_a_server_without_ranges_is_read_from_the_start_and_said_to_be_so(rude, library, blob, caplog):
    data = library.data(blob.sha256)
    server = rude(says("200 OK", data, Content_Length=SIZE))
    assert take(HttpSource(server.url), blob) == parts(data, range(11))
    assert not caplog.records
    assert take(HttpSource(server.url), blob, range(4, 6), range(8, 9)) == parts(
        data, range(4, 6), range(8, 9)
    )
    assert "without ranges" in caplog.text


def test_a_part_in_chunks_is_read(rude, library, blob):
    data = library.data(blob.sha256)

    def chunked(connection, request):
        start, end = asked(request)
        connection.sendall(
            head("206 OK", Content_Range=f"bytes {start}-{end - 1}/{SIZE}", Transfer_Encoding="chunked")
        )
        for at in range(start, end, 5000):
            piece = data[at : min(end, at + 5000)]
            connection.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        connection.sendall(b"0\r\n\r\n")

    assert take(HttpSource(rude(chunked).url), blob, range(3), range(5, 11)) == parts(
        data, range(3), range(5, 11)
    )


def test_paths_may_be_those_of_any_web_server(rude, library, blob):
    data = library.data(blob.sha256)
    server = rude(polite(data))
    take(HttpSource(f"{server.url}/repo/targets", path=lambda blob: f"{blob.sha256}.model.slm"), blob)
    assert server.requests[0].startswith(f"GET /repo/targets/{blob.sha256}.model.slm HTTP/1.1".encode())


def test_redirects_within_the_scheme_are_followed_and_remembered(rude, library, blob):
    data = library.data(blob.sha256)
    target = rude(polite(data))
    front = rude(says("302 Found", Location=f"{target.url}/elsewhere?signature=1", Content_Length=0))
    source = HttpSource(front.url)
    assert take(source, blob, range(1), range(2, 11)) == parts(data, range(1), range(2, 11))
    assert len(front.requests) == 1
    assert target.requests[1].startswith(b"GET /elsewhere?signature=1 ")


def test_a_redirect_that_no_longer_works_is_asked_for_again(rude, library, blob):
    data = library.data(blob.sha256)
    target = rude(polite(data, close=True), says("403 Expired", Content_Length=0), polite(data))
    front = rude(says("307 Moved", Location=target.url, Content_Length=0))
    source = HttpSource(front.url)
    assert take(source, blob, range(1)) == parts(data, range(1))
    with pytest.raises(SourceMissingError):
        take(source, blob, range(1))
    assert take(source, blob, range(1)) == parts(data, range(1))
    assert len(front.requests) == 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_blocks_over_tls(tmp_path, library, blob):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate, key)
    with PackageServer(by_sha256(in_directory(library.directory)), context=serving) as server:
        trusting = ssl.create_default_context(cafile=str(certificate))
        assert take(HttpSource(server.url, context=trusting), blob) == parts(
            library.data(blob.sha256), range(11)
        )
        with pytest.raises(SourceError, match="certificate verify failed"):
            take(HttpSource(server.url), blob)
        with pytest.raises(SourceError):
            take(HttpSource(server.url.replace("https", "http")), blob)
        # A client that does not shake hands holds up nobody.
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))):
            assert take(HttpSource(server.url, context=trusting), blob, range(1))


# --- rude ones ----------------------------------------------------------------------------------------------

WHOLE = f"bytes 0-{SIZE - 1}/{SIZE}"

LIES = {
    "no_content_range": says("206 OK", bytes(SIZE), Content_Length=SIZE),
    "broken_content_range": says("206 OK", bytes(SIZE), Content_Range=f"bytes 0-{SIZE - 1}"),
    "other_unit": says("206 OK", bytes(SIZE), Content_Range=f"items 0-{SIZE - 1}/{SIZE}"),
    "another_start": says("206 OK", bytes(SIZE), Content_Range=f"bytes 1-{SIZE - 1}/{SIZE}"),
    "beyond_the_end": says("206 OK", bytes(SIZE + 9), Content_Range=f"bytes 0-{SIZE + 8}/{SIZE}"),
    "backwards": says("206 OK", b"", Content_Range=f"bytes 0-{-1}/{SIZE}"),
    "another_size": says("206 OK", bytes(SIZE), Content_Range=f"bytes 0-{SIZE - 1}/{SIZE + 1}"),
    "digits_without_end": says("206 OK", b"", Content_Range=f"bytes 0-{'9' * 5000}/{SIZE}"),
    "another_length": says("206 OK", bytes(SIZE), Content_Range=WHOLE, Content_Length=SIZE - 1),
    "length_of_gibibytes": says("206 OK", bytes(SIZE), Content_Range=WHOLE, Content_Length=2**40),
    "whole_of_another_size": says("200 OK", bytes(5), Content_Length=5),
    "compressed": says("206 OK", bytes(SIZE), Content_Range=WHOLE, Content_Encoding="gzip"),
    "shorter_file": says("416 No", Content_Range="bytes */5", Content_Length=0),
    "other_scheme": says("302 Found", Location="https://127.0.0.1/", Content_Length=0),
    "file_scheme": says("302 Found", Location="file:///etc/passwd", Content_Length=0),
    "redirect_to_nowhere": says("302 Found", Location="http://:80/", Content_Length=0),
    "redirect_with_a_bad_port": says("302 Found", Location="http://127.0.0.1:99999/", Content_Length=0),
    "redirect_in_unicode": says("302 Found", Location="http://h\xf6st/\xff", Content_Length=0),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_server_that_says_what_cannot_be_lies(rude, blob, name):
    with pytest.raises(LyingSourceError) as caught:
        take(HttpSource(rude(LIES[name]).url), blob)
    assert caught.value.source.startswith("http://127.0.0.1:")
    assert str(caught.value).isprintable()


FAULTS = {
    "silence_then_gone": lambda connection, _: connection.close(),
    "no_http": says("SSH-2.0-OpenSSH"),
    "line_without_end": lambda connection, _: connection.sendall(b"HTTP/1.1 200 " + b"x" * 200_000),
    "headers_without_end": lambda connection, _: connection.sendall(
        b"HTTP/1.1 206 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(9999))
    ),
    "continues_without_end": lambda connection, _: [
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000) for _ in range(10**6)
    ],
    "cut_in_the_body": says("206 OK", bytes(1000), Content_Range=WHOLE, Content_Length=SIZE),
    "server_error": says("500 Oops", Content_Length=0),
    "not_modified": says("304 Not Modified"),
    "broken_chunks": says("206 OK", b"zz\r\n", Content_Range=WHOLE, Transfer_Encoding="chunked"),
    "redirect_to_itself": says("302 Found", Location="/again", Content_Length=0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_fails_is_a_source_error(rude, blob, name):
    with pytest.raises(SourceError) as caught:
        take(HttpSource(rude(FAULTS[name]).url), blob)
    assert type(caught.value) is SourceError


@pytest.mark.parametrize("status", ["401 Who", "403 No", "404 Not Found", "410 Gone"])
def test_a_server_that_has_nothing_for_us_is_told_from_one_that_fails(rude, blob, status):
    with pytest.raises(SourceMissingError):
        take(HttpSource(rude(says(status, Content_Length=0)).url), blob)


@pytest.mark.parametrize(
    ("after", "wait_s"), [("30", 30.0), ("99999999999", None), ("soon", None), ("-1", None), ("", None)]
)
def test_a_busy_server_says_when_to_come_again(rude, blob, after, wait_s):
    with pytest.raises(SourceError) as caught:
        take(HttpSource(rude(says("503 Busy", Retry_After=after, Content_Length=0)).url), blob)
    assert caught.value.retry_after_s == wait_s


def test_an_endless_body_gives_what_was_asked_for_and_no_more(rude, library, blob):
    data = library.data(blob.sha256)
    came = 0

    def endless(connection, _request):
        connection.sendall(head("206 OK", Content_Range=WHOLE) + data)
        while True:
            connection.sendall(bytes(65_536))

    def count(size):
        nonlocal came
        came += size

    assert take(HttpSource(rude(endless).url), blob, received=count) == parts(data, range(11))
    assert came < SIZE + 300_000


def test_a_silent_server_is_given_up_and_asked_about_meanwhile(rude, blob):
    calls = []
    source = HttpSource(rude(lambda *_: None).url, timeout_s=1.2)
    began = time.monotonic()
    with pytest.raises(SourceError, match="no byte for"):
        take(source, blob, received=calls.append)
    assert 1.0 < time.monotonic() - began < 4
    assert calls.count(0) >= 2


def test_a_trickle_of_headers_is_told_of_and_can_be_ended(rude, blob):
    def trickle(connection, _request):
        for byte in b"HTTP/1.1 206 OK\r\nX-Slow: " + b"y" * 10_000:
            connection.sendall(bytes([byte]))
            time.sleep(0.005)

    came = 0

    def impatient(size):
        nonlocal came
        came += size
        if came > 40:
            raise DeliveryCancelledError("enough")

    with pytest.raises(DeliveryCancelledError):
        take(HttpSource(rude(trickle).url), blob, received=impatient)
    assert came < 1000


def test_nobody_there_is_a_source_error(blob):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", "http://host.invalid"):
        with pytest.raises(SourceError):
            take(HttpSource(url, timeout_s=2), blob)


def test_a_source_can_be_used_again_after_every_fault(rude, library, blob):
    data = library.data(blob.sha256)
    faults = {**FAULTS, "cut_in_the_body": polite(data, cut=1000)}
    server = rude(*faults.values(), polite(data))
    source = HttpSource(server.url)
    for _ in range(len(FAULTS) + 10):
        try:
            assert take(source, blob) == parts(data, range(11))
            break
        except SourceError:
            continue
    else:
        pytest.fail("it never worked again")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/",
        "http://",
        "http:///path",
        "http://user:secret@host/",
        "http://h:99999/",
        "http://h /",
    ],
)
def test_what_is_no_url_of_a_server_is_refused(url):
    with pytest.raises(ConfigError):
        HttpSource(url)


# --- the server ---------------------------------------------------------------------------------------------


def ask(server: PackageServer, method: str, path: str, **headers: str):
    host, port = server.url.removeprefix("http://").split(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=5)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


def test_whole_files_and_heads_are_served(server, library, blob):
    path = f"/blocks/{blob.sha256}"
    status, body, headers = ask(server, "GET", path)
    assert (status, body) == (200, library.data(blob.sha256))
    assert headers["Accept-Ranges"] == "bytes"
    status, body, headers = ask(server, "HEAD", path)
    assert (status, body, headers["Content-Length"]) == (200, b"", str(SIZE))


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, SIZE),
        ("bytes=-5", SIZE - 5, SIZE),
        (f"bytes=5-{SIZE * 9}", 5, SIZE),
        (f"bytes=-{SIZE * 9}", 0, SIZE),
    ],
)
def test_ranges_are_served(server, library, blob, header, start, end):
    status, body, headers = ask(server, "GET", f"/blocks/{blob.sha256}", Range=header)
    assert (status, body) == (206, library.data(blob.sha256)[start:end])
    assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", "bytes=9-5", "bytes=-0"])
def test_ranges_outside_of_the_file_are_refused(server, blob, header):
    status, body, headers = ask(server, "GET", f"/blocks/{blob.sha256}", Range=header)
    assert (status, body, headers["Content-Range"]) == (416, b"", f"bytes */{SIZE}")


@pytest.mark.parametrize(
    "header", ["bytes=0-1,5-6", "bytes=-", "lines=1-2", "bytes=a-b", "bytes= 1-2", f"bytes=1-{'9' * 50}"]
)
def test_other_range_headers_count_as_none(server, blob, header):
    status, body, _ = ask(server, "GET", f"/blocks/{blob.sha256}", Range=header)
    assert (status, len(body)) == (200, SIZE)


@given(
    first=st.none() | st.integers(0, 10**12),
    last=st.none() | st.integers(0, 10**12),
    size=st.integers(1, 10**12),
)
def test_a_range_never_leaves_the_file(first, last, size):
    found = requested_range(f"bytes={'' if first is None else first}-{'' if last is None else last}", size)
    if found is None:
        assert first is last is None
    else:
        start, end = found
        assert start <= end
        assert start == end or 0 <= start < end <= size


@pytest.mark.parametrize(
    "path",
    ["/", "/blocks/", "/blocks/../library", "/blocks/%2e%2e", "/blocks/" + "a" * 64, "/blocks/" + "A" * 64,
     "/etc/passwd", "/blocks/{sha}/", "/blocks/{sha}?x=1", "blocks/{sha}", "/blocks/{sha}%00"],
)  # fmt: skip
def test_nothing_but_named_files_is_served(server, blob, path):
    assert ask(server, "GET", path.format(sha=blob.sha256))[:2] == (404, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(server, blob, method):
    assert ask(server, method, f"/blocks/{blob.sha256}")[0] == 501


def test_links_that_lead_nowhere_and_fifos_are_not_served(server, library):
    (library.directory / ("b" * 64)).symlink_to("nowhere")
    os.mkfifo(library.directory / ("c" * 64))
    (library.directory / ("d" * 64)).mkdir()
    (library.directory / ("e" * 64)).write_bytes(b"")
    for letter in "bcde":
        assert ask(server, "GET", f"/blocks/{letter * 64}")[0] == 404


def test_too_many_connections_are_told_to_come_again(library, blob):
    with PackageServer(by_sha256(in_directory(library.directory)), max_connections=2, idle_s=1.0) as server:
        address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        with socket.create_connection(address), socket.create_connection(address):
            time.sleep(0.1)
            with socket.create_connection(address) as third:
                assert third.recv(1000).startswith(b"HTTP/1.1 503 ")
            time.sleep(1.3)  # those that say nothing are closed
        assert ask(server, "GET", f"/blocks/{blob.sha256}")[0] == 200


def test_a_reader_that_stands_still_is_closed(library):
    blob = library.add(40 * 2**20)
    with PackageServer(by_sha256(in_directory(library.directory)), idle_s=0.5) as server:
        address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        with socket.create_connection(address) as reader:
            reader.sendall(f"GET /blocks/{blob.sha256} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            time.sleep(1.2)
            got = 0
            while data := reader.recv(2**20):
                got += len(data)
            assert got < blob.size_bytes


def test_a_file_that_shrinks_while_it_is_served_ends_the_connection(tmp_path, library, blob):
    class Shrinking(FileBlob):
        def read(self, offset, size_bytes):
            if offset >= 3 * BLOCK_BYTES:
                os.truncate(self.path, offset)
            return super().read(offset, size_bytes)

    server = PackageServer(lambda _: Shrinking(library.directory / blob.sha256))
    with server, pytest.raises(http.client.IncompleteRead):
        ask(server, "GET", "/anything")


def test_many_readers_at_once_get_the_same(server, library, blob):
    found, data = [], library.data(blob.sha256)

    def read():
        found.append(take(HttpSource(server.url), blob) == parts(data, range(11)))

    threads = [threading.Thread(target=read) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [True] * 12


def test_beyond_4_gib_ranges_are_right(tmp_path):
    path = tmp_path / ("ab" * 32)
    size = 2**32 + BLOCK_BYTES + 7
    with path.open("wb") as stream:
        stream.seek(size - 7)
        stream.write(b"the end")
    blob = BlobRef(sha256="ab" * 32, size_bytes=size)
    last = blob.block_count - 1
    with PackageServer(by_sha256(in_directory(tmp_path))) as server:
        assert take(HttpSource(server.url), blob, range(last, last + 1)) == {last: b"the end"}


def test_a_port_that_is_taken_is_a_config_error(server):
    with pytest.raises(ConfigError, match="cannot listen"):
        PackageServer(lambda _: None, port=int(server.url.rsplit(":", 1)[1]))
