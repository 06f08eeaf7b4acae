"""GET /generate/download of the real server."""

import struct
import time

import httpx
import pytest

from tests.support import http
from tests.support.http import DOWNLOAD
from tests.support.raw_client import RawClient, RawResponse, raw_request, send_raw
from tests.support.refusals import check_refusal
from tests.support.server import Frames, Frontend


@pytest.fixture(scope="module")
def output(server: Frontend, clip: Frames) -> str:
    events = server.generate(pipeline_id="passthrough", prompt="", num_frames=30, input_path=server.upload(clip))
    return str(events[-1][1]["output_path"])


@pytest.fixture(scope="module")
def whole(clip: Frames) -> bytes:
    return struct.pack("<5I", 4, *clip.shape) + clip.tobytes()


def get(server: Frontend, output: str, method: str = "GET", **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.request(method, f"{server.url}/api/v1/generate/download", params={"path": output}, headers=sent)


def test_the_whole_file(server: Frontend, output: str, whole: bytes) -> None:
    answer = get(server, output)
    assert answer.status_code == 200
    assert answer.content == whole
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-length"] == str(len(whole))
    assert answer.headers["accept-ranges"] == "bytes"
    shape = [answer.headers[f"x-video-{side}"] for side in ("frames", "height", "width", "channels")]
    assert shape == ["30", "160", "288", "3"]


# fmt: off
RANGES = [
    # the header, the first byte (negative: from the end), the last byte (None: of the file)
    ("bytes=0-0", 0, 0), ("bytes=0-19", 0, 19), ("bytes=100-", 100, None), ("bytes=-7", -7, None),
    ("bytes=5-99999999999", 5, None), ("Bytes=0-3", 0, 3), ("BYTES=-5", -5, None), ("bytes= 0-3 ", 0, 3),
    ("bytes=\t0-3", 0, 3), ("bytes=,0-3,", 0, 3), ("bytes=000-003", 0, 3), ("bytes=4-" + "9" * 30, 4, None),
    ("bytes=4-" + "9" * 6000, 4, None), ("bytes=-" + "9" * 30, 0, None), ("bytes=-" + "9" * 6000, 0, None),
]
RANGES_OUTSIDE = [
    "bytes=-0", "bytes=-000", "bytes=99999999999-", "bytes=99999999999-99999999999", "bytes={size}-",
    "bytes=" + "9" * 6000 + "-", "bytes=-0,99999999999-",
]
IGNORED_RANGES = [
    ["Range: bytes=0-1,4-5"], ["Range: bytes=0-1,99999999999-"], ["Range: bytes=4-5,0-1"], ["Range: frames=0-1"],
    ["Range: bytes 0-1"], ["Range: 0-1"], ["Range: bytes"], ["Range: bytes="], ["Range: bytes=abc"],
    ["Range: bytes=5-2"], ["Range: bytes=--1"], ["Range: bytes=-"], ["Range: bytes=0x1-2"], ["Range: bytes=1-2-3"],
    ["Range: bytes=+1-2"], ["Range: bytes=1.0-2"], ["Range: bytes=\u00b2-\u00b3"], ["Range: "], ["Range: bytes=,"],
    ["Range: bytes=0-1", "Range: bytes=0-1"], ["Range: bytes=" + "0-,-1," * 3000],
    ["Range: bytes=" + ",".join(f"{start}-{start}" for start in range(0, 6000, 2))],
]
# fmt: on


def download(server: Frontend, output: str, *headers: str) -> RawResponse:
    return send_raw(server.url, raw_request(f"GET {DOWNLOAD}?path={output}", *headers))


def test_ranges(server: Frontend, output: str, whole: bytes, subtests: pytest.Subtests) -> None:
    for text, first, last in RANGES:
        with subtests.test(ascii(text)[:30]):
            answer = download(server, output, f"Range: {text}")
            start = first if first >= 0 else len(whole) + first
            end = len(whole) - 1 if last is None else last
            assert answer.status == 206
            assert answer.body == whole[start : end + 1]
            assert answer.headers["content-range"] == f"bytes {start}-{end}/{len(whole)}"
            assert answer.headers["x-video-frames"] == "30"


def test_ranges_outside_the_file(server: Frontend, output: str, whole: bytes, subtests: pytest.Subtests) -> None:
    for text in RANGES_OUTSIDE:
        with subtests.test(text[:30]):
            answer = download(server, output, f"Range: {text.replace('{size}', str(len(whole)))}")
            assert check_refusal(server, answer)["code"] == "range_not_satisfiable"
            assert answer.headers["content-range"] == f"bytes */{len(whole)}"


def test_several_or_invalid_ranges_are_ignored(
    server: Frontend, output: str, whole: bytes, subtests: pytest.Subtests
) -> None:
    for headers in IGNORED_RANGES:
        with subtests.test(ascii(headers)[:30]):
            answer = download(server, output, *headers)
            assert (answer.status, answer.body) == (200, whole)
            assert "content-range" not in answer.headers


# -- Preconditions ----------------------------------------------------------------------------------------------


def conditional(server: Frontend, output: str, method: str, *headers: str) -> RawResponse:
    return send_raw(
        server.url,
        raw_request(f"{method} {DOWNLOAD}?path={output}", *(each.replace("TAG", output) for each in headers)),
    )


DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
SAME = [
    *('If-None-Match: "TAG"', 'If-None-Match: W/"TAG"', "If-None-Match: *", 'If-None-Match: "x", W/"y","TAG"'),
    'If-None-Match: "x"\r\nIf-None-Match: "TAG"',
]
OTHER = ['If-None-Match: "x"', 'If-None-Match: W/"x"', 'If-None-Match: "TAG,"', 'If-None-Match: "tag"']


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_the_client_has_is_not_sent_again(server: Frontend, output: str, whole: bytes, method: str) -> None:
    for header in (
        *SAME,
        *(f"{each}\r\nRange: bytes=0-1" for each in SAME),
        'If-None-Match: "x"\r\nIf-None-Match: "TAG"',
    ):
        for date in ((), (f"If-Modified-Since: {DATE}",)):
            answer = conditional(server, output, method, header, *date)
            assert (answer.status, answer.body) == (304, b""), header
            assert answer.headers["etag"] == f'"{output}"'
            assert not {"content-type", "content-length", "content-range", "transfer-encoding"} & set(answer.headers)
    for header in OTHER:
        answer = conditional(server, output, method, header)
        assert answer.status == 200, header
        assert answer.headers["content-length"] == str(len(whole))


def test_the_connection_goes_on_after_an_answer_without_a_body(server: Frontend, output: str, whole: bytes) -> None:
    address = f"{server.url}{DOWNLOAD}"
    with httpx.Client() as client:
        for headers, status in (
            ({"If-None-Match": "*"}, 304),
            ({"If-Match": '"x"'}, 412),
            ({"Range": "bytes=-0"}, 416),
            ({"Range": "bytes=0-1"}, 206),
            ({}, 200),
        ):
            answer = client.get(address, params={"path": output}, headers=headers)
            assert answer.status_code == status
        assert answer.content == whole


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_if_match(server: Frontend, output: str, method: str) -> None:
    for header in ('If-Match: "TAG"', "If-Match: *", 'If-Match: W/"x", "TAG"', 'If-Match: "x"\r\nIf-Match: "TAG"'):
        assert conditional(server, output, method, header).status == 200, header
    for header in ('If-Match: "x"', 'If-Match: W/"TAG"', "If-Match: ", 'If-Match: "TAGx"'):
        for others in ((), ('If-None-Match: "TAG"',), ("Range: bytes=0-1",), (f"If-Unmodified-Since: {DATE}",)):
            answer = conditional(server, output, method, header, *others)
            assert answer.status == 412, header
            if method == "GET":
                assert check_refusal(server, answer)["code"] == "precondition_failed"


def test_preconditions_come_in_the_order_of_the_standard(server: Frontend, output: str) -> None:
    """If-Match, If-None-Match, then Range with If-Range; a file that is not there comes before all of them."""
    match, none, far = 'If-Match: "TAG"', 'If-None-Match: "TAG"', "Range: bytes=99999999999-"
    assert conditional(server, output, "GET", match, none, far).status == 304
    assert conditional(server, output, "GET", match, 'If-None-Match: "x"', far).status == 416
    assert conditional(server, output, "GET", match, 'If-None-Match: "x"', far, 'If-Range: "x"').status == 200
    assert conditional(server, output, "GET", match, 'If-None-Match: "x"', "Range: bytes=0-1").status == 206
    gone = "output-" + "0" * 32
    for header in (none, "If-None-Match: *", match, "If-Match: *"):
        assert check_refusal(server, conditional(server, gone, "GET", header))["code"] == "unknown_path"


def test_if_range_accepts_only_the_strong_tag(server: Frontend, output: str, whole: bytes) -> None:
    part, asked = (206, whole[:2]), "Range: bytes=0-1"
    answer = conditional(server, output, "GET", asked, 'If-Range: "TAG"')
    assert (answer.status, answer.body) == part
    others = ['"x"', 'W/"TAG"', "TAG", "*", "", DATE, "Sun, 06 Nov 2094 08:49:37 GMT", '"TAG", "x"']
    for other in (*others, '"TAG"\r\nIf-Range: "x"'):
        answer = conditional(server, output, "GET", asked, f"If-Range: {other}")
        assert (answer.status, answer.body) == (200, whole), other
    answer = conditional(server, output, "GET", 'If-Range: "x"')  # without a range it says nothing
    assert (answer.status, answer.body) == (200, whole)


def test_dates_are_ignored(server: Frontend, output: str, whole: bytes) -> None:
    for header in (f"If-Modified-Since: {DATE}", "If-Modified-Since: x", f"If-Unmodified-Since: {DATE}"):
        answer = conditional(server, output, "GET", header)
        assert (answer.status, answer.body) == (200, whole)
        assert "last-modified" not in answer.headers


def test_head_ignores_ranges(server: Frontend, output: str, whole: bytes) -> None:
    for range_ in ("bytes=0-3", "bytes=-1", "bytes=99999999999-", "bytes=-0", "bytes=0-1,4-5"):
        answer = conditional(server, output, "HEAD", f"Range: {range_}", 'If-Range: "TAG"')
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-length"] == str(len(whole))
        assert "content-range" not in answer.headers


def test_head(server: Frontend, output: str, whole: bytes) -> None:
    answer = get(server, output, "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(whole))
    assert answer.headers["x-video-frames"] == "30"


def test_resumed_in_pieces_it_is_the_file(server: Frontend, output: str, whole: bytes) -> None:
    pieces = [get(server, output, Range=f"bytes={at}-{at + 999_999}").content for at in range(0, len(whole), 10**6)]
    assert b"".join(pieces) == whole


def test_an_aborted_download_keeps_the_file(server: Frontend, output: str, whole: bytes) -> None:
    for _ in range(3):
        with RawClient(server.url) as client:
            client.send_head("GET", f"{DOWNLOAD}?path={output}")
            client.read_head().read(100)
    assert get(server, output).content == whole


def test_a_slow_reader_gets_the_whole_file(server: Frontend, output: str, whole: bytes) -> None:
    with RawClient(server.url) as client:
        client.send(raw_request(f"GET {DOWNLOAD}?path={output}"))
        time.sleep(1)
        assert client.read_to_end().partition(b"\r\n\r\n")[2] == whole


def test_the_path_is_required(server: Frontend) -> None:
    assert http.get(f"{server.url}/api/v1/generate/download").status_code == 422
