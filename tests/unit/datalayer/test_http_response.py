"""One HTTP/1.1 response after another, from bytes."""

import gzip

import pytest

from epp.datalayer.http_response import HttpError, HttpResponse, ResponseReader


def read(*pieces: bytes, max_body: int = 1000) -> HttpResponse | None:
    reader = ResponseReader(max_body)
    response = None
    for piece in pieces:
        assert response is None
        response = reader.feed(piece)
    return response


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def test_content_length() -> None:
    assert read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", b"lo") == HttpResponse(200, b"hello", True)


def test_empty_body_and_empty_reason() -> None:
    assert read(b"HTTP/1.1 404\r\ncontent-length: 0\r\n\r\n") == HttpResponse(404, b"", True)
    assert read(b"HTTP/1.1 204 No Content\r\n\r\n") == HttpResponse(204, b"", True)


def test_chunked_with_extensions_and_trailers() -> None:
    page = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nx-sum: 1\r\n\r\n"
    assert read(page) == HttpResponse(200, b"hello!", True)


def test_keep_alive_or_not() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: Close\r\n\r\n"
    assert read(head) == HttpResponse(200, b"", False)
    assert read(b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n") == HttpResponse(200, b"", False)
    kept = b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n"
    assert read(kept) == HttpResponse(200, b"", True)


def test_length_and_chunked_together_are_not_trusted_twice() -> None:
    page = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"hello")
    assert read(page) == HttpResponse(200, b"hello", False)


def test_body_until_the_connection_ends() -> None:
    reader = ResponseReader(1000)
    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nhel") is None
    assert reader.feed(b"lo") is None
    assert reader.eof() == HttpResponse(200, b"hello", False)


def test_interim_responses_are_skipped() -> None:
    page = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    assert read(page + b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") == HttpResponse(200, b"ok", True)


def test_two_responses_on_one_connection() -> None:
    reader = ResponseReader(1000)
    page = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"abc")
    assert reader.feed(page) == reader.feed(page) == HttpResponse(200, b"abc", True)
    assert not reader.started


def test_gzip_is_read_though_never_asked_for() -> None:
    body = gzip.compress(b"x" * 500)
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert read(head + body) == HttpResponse(200, b"x" * 500, True)
    with pytest.raises(HttpError, match="after decompression"):
        read(head + body, max_body=499)
    with pytest.raises(HttpError, match="bad gzip"):
        read(head + b"?" * len(body))
    cut = body[:-4]
    with pytest.raises(HttpError, match="too early"):
        read(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(cut) + cut)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP/1 response"),
        (b"HTTP/2 200\r\n\r\n", "not an HTTP/1 response"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "not an HTTP/1 response"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "switch of protocols"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "bad content-length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "bad content-length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n", "at most 1000"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: br\r\n\r\n", "transfer-encoding"),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\n\r\n", "content-encoding"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab", "after the response"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001, "longer than 1000"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 40_000, "head longer"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"x" * 40_000 + b"\r\n\r\n", "head longer"),
    ],
)
def test_what_is_no_usable_response(page: bytes, message: str) -> None:
    with pytest.raises(HttpError, match=message):
        read(page)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (b"zz\r\n", "bad chunk size"),
        (b"-5\r\n", "bad chunk size"),
        (b"\r\n", "bad chunk size"),
        (b"fffffffffffff\r\n", "bad chunk size"),
        (b"3e9\r\n", "longer than 1000"),
        (b"3\r\nabcde\r\n", "where its size says"),
        (b"1;" + b"x" * 2000, "too long"),
        (b"0\r\n\r\nrest", "after the response"),
        (b"0\r\n" + b"x: y\r\n" * 7000, "trailers longer"),
    ],
)
def test_chunks_that_are_wrong(chunks: bytes, message: str) -> None:
    with pytest.raises(HttpError, match=message):
        read(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks)


def test_connections_that_end_too_early() -> None:
    reader = ResponseReader(1000)
    with pytest.raises(HttpError, match="before a response"):
        reader.eof()
    reader.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe")
    assert reader.started
    with pytest.raises(HttpError, match="in the middle"):
        reader.eof()


def test_heads_that_differ_are_read_anew() -> None:
    reader = ResponseReader(1000)
    for body in (b"one", b"two", b"three", b""):
        assert reader.feed(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)) == HttpResponse(
            200, body, True
        )
    with pytest.raises(HttpError, match="not an HTTP/1 response"):
        reader.feed(b"\r\n\r\n")


def test_an_empty_head_is_none() -> None:
    with pytest.raises(HttpError, match="not an HTTP/1 response"):
        read(b"\r\n\r\nhello")


def test_a_page_byte_by_byte() -> None:
    body = b"vllm:num_requests_running 1.0\n" * 3
    for head in (
        b"content-length: %d\r\n\r\n" % len(body) + body,
        b"transfer-encoding: chunked\r\n\r\n" + chunked(body),
    ):
        page = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n" + head
        for size in (1, 2, 3, 7):
            pieces = [page[start : start + size] for start in range(0, len(page), size)]
            assert read(*pieces) == HttpResponse(200, body, True)
