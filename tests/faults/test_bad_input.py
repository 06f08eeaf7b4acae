"""Malformed videos, blobs, JSON and images: each is refused quickly, in the one error format, and does no harm."""

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from frontend.schema import MAX_LOAD_PARAMS_CHARACTERS
from tests.support import http
from tests.support.http import ASSETS, DOWNLOAD, GENERATE, LOAD, UPLOAD, UPLOAD_DATA
from tests.support.raw_client import raw_request, send_raw
from tests.support.recovery import PROBE, assert_recovers, eventually
from tests.support.refusals import check_refusal, count_tracebacks, generate_refusal, refusal_of
from tests.support.server import Frontend

U32 = 2**32


@pytest.fixture(scope="module", autouse=True)
def server_recovers(server: Frontend) -> Iterator[None]:
    """The whole module leaves the server as it was, without a traceback in its log."""
    before = count_tracebacks(server)
    with assert_recovers(server):
        yield
    assert count_tracebacks(server) == before


@pytest.fixture(autouse=True)
def nothing_left(server: Frontend) -> Iterator[None]:
    """No test leaves a file or occupies the slot."""
    before = server.stored()
    yield
    server.wait_idle()
    eventually(lambda: server.stored() == before)


def post(server: Frontend, path: str, body: bytes, **headers: str) -> dict[str, object]:
    """The refusal of a POST."""
    return refusal_of(server, f"POST {path}", *(f"{name}: {value}" for name, value in headers.items()), body=body)


# -- Videos ---------------------------------------------------------------------------------------------------

SHAPE = {"X-Video-Frames": "1", "X-Video-Height": "2", "X-Video-Width": "2"}
SHAPE_HEADERS = [f"{name}: {value}" for name, value in SHAPE.items()]
# fmt: off
BAD_COUNTS = [
    "", " ", "0", "-1", "+1", "1.0", "1.5", "1e3", "0x10", "1_0", "1 2", "1,1", "abc", "NaN", "None", "true", "../1",
    str(U32), "9" * 11, "9" * 5000, "\u00b2", "\u00bd", "\u00e9", "1\u00a0", "1;2", "%31", "{1}",
]
# fmt: on


def test_headers_that_are_not_counts(server: Frontend, subtests: pytest.Subtests) -> None:
    for value in BAD_COUNTS:
        for name in (*SHAPE, "X-Video-Channels"):
            with subtests.test(f"{name}: {ascii(value)[:20]}"):
                error = post(server, UPLOAD, bytes(12), **SHAPE | {name: value})
                assert (error["code"], error["field"]) == ("bad_header", name)
                assert len(str(error["message"])) < 300


def test_repeated_headers(server: Frontend) -> None:
    for name in (*SHAPE, "X-Video-Channels"):
        headers = [*SHAPE_HEADERS, "X-Video-Channels: 3", f"{name}: 3"]
        assert refusal_of(server, f"POST {UPLOAD}", *headers, body=bytes(12))["code"] == "bad_header"


@given(st.lists(st.integers(1, U32 - 1) | st.sampled_from([1, 2, 2**16, 2**31, U32 - 1]), min_size=3, max_size=3))
@example([2**31, 2**31, 4])  # their product is 0 in 64 bits
@example([U32 - 1, U32 - 1, U32 - 1])
@settings(max_examples=50, derandomize=True)
def test_sizes_that_no_body_has(server: Frontend, sides: list[int]) -> None:
    headers = dict(zip(SHAPE, map(str, sides), strict=True))
    error = post(server, UPLOAD, bytes(1), **headers)
    assert error["code"] == ("too_large" if 3 * int(np.prod(sides, dtype=object)) > 2**31 else "size_mismatch")


def test_bodies_shorter_or_longer_than_their_headers_say(server: Frontend) -> None:
    for length in (0, 1, 11, 13, 100_000):
        assert post(server, UPLOAD, bytes(length), **SHAPE)["code"] == "size_mismatch"
        chunked = (bytes(1) for _ in range(min(length, 100)))
        response = http.post(server.url + UPLOAD, content=chunked, headers=SHAPE)
        assert check_refusal(server, response)["code"] == "size_mismatch"


def test_bodies_that_end_before_or_after_their_content_length(server: Frontend) -> None:
    error = refusal_of(server, f"POST {UPLOAD}", *SHAPE_HEADERS, body=bytes(3), length=100)
    assert error["code"] == "size_mismatch"  # without waiting for the body: its length is known to be wrong
    response = send_raw(server.url, raw_request(f"POST {UPLOAD}", *SHAPE_HEADERS, body=bytes(12) + b"GET", length=12))
    uploaded = response.json()
    assert uploaded["shape"] == [1, 2, 2, 3]  # what follows the last request of a connection is ignored
    assert http.delete(f"{server.url}/api/v1/files/{uploaded['input_path']}").status_code == 204


def test_invalid_content_lengths(server: Frontend, subtests: pytest.Subtests) -> None:
    for length in ("-1", "+5", "5_0", "0x5", "5, 6", "9" * 30, "9" * 5000, "\u00b2", "5 5"):
        for path in (UPLOAD, UPLOAD_DATA, ASSETS, GENERATE):
            with subtests.test(f"{path} {length[:20]}"):
                refusal_of(server, f"POST {path}", f"Content-Length: {length}")


def test_invalid_chunk_sizes(server: Frontend, subtests: pytest.Subtests) -> None:
    head = raw_request(f"POST {UPLOAD}", *SHAPE_HEADERS, "Transfer-Encoding: chunked")
    for size in (b"zz", b"-1", b"", b"F" * 21, b"1" * 40_000):
        with subtests.test(size[:20]):
            sent = head + size + b"\r\n" + bytes(12) + b"\r\n0\r\n\r\n"
            check_refusal(server, send_raw(server.url, sent))


# -- Blobs ----------------------------------------------------------------------------------------------------

VACE = (1, 3, 12, 64, 96)
MASKS = (1, 1, 12, 64, 96)
VIDEO = (12, 64, 96, 3)
BLOB_BYTES = 4 * int(np.prod(VACE))
KINDS = {"vace_frames": (VACE, 4), "vace_masks": (MASKS, 4), "input_video": (VIDEO, 1)}
SIDE = st.integers(0, 20) | st.sampled_from([3, 12, 64, 96, 2**16, 2**31, U32 - 1, U32, 2**63, -1])


@pytest.fixture(scope="module")
def blob(server: Frontend) -> Iterator[str]:
    name = server.upload_data(bytes(BLOB_BYTES))
    yield name
    (server.data_dir / "blobs" / name).unlink()


@given(st.sampled_from(sorted(KINDS)), st.data())
@settings(max_examples=100, derandomize=True)
def test_arrays_around_the_end_of_the_blob(server: Frontend, blob: str, kind: str, data: st.DataObject) -> None:
    """An array that ends within the blob is accepted at any offset; one that ends a byte beyond it is refused."""
    shape, item = KINDS[kind]
    last = BLOB_BYTES - item * int(np.prod(shape))
    offset = data.draw(st.integers(max(0, last - 5), last + 5) | st.integers(0, 2**63 - 1))
    spec = {"chunk": 0, f"{kind}_offset": offset, f"{kind}_shape": shape}
    request = PROBE | {"num_frames": 1, "data_blob_path": blob, "chunk_specs": [spec]}
    if offset <= last:
        event, result = server.generate(**request)[-1]
        assert event == "complete"
        (server.data_dir / "outputs" / result["output_path"]).unlink()
    else:
        error = generate_refusal(server, **request)
        assert (error["code"], error["field"]) == ("invalid_field", f"chunk_specs[0].{kind}_offset")


@given(st.sampled_from(sorted(KINDS)), st.data())
@settings(max_examples=100, derandomize=True)
def test_arrays_of_invalid_shapes(server: Frontend, blob: str, kind: str, data: st.DataObject) -> None:
    shape, _ = KINDS[kind]
    sides = data.draw(st.lists(SIDE, min_size=len(shape) - 1, max_size=len(shape) + 1).filter(lambda it: it != shape))
    offset = data.draw(st.sampled_from([0, 1, 2, 3, 2**31, 2**63 - 1]))
    spec = {
        "chunk": 2,
        f"{kind}_offset": offset,
        f"{kind}_shape": sides,
    }  # there is no such chunk
    request = PROBE | {"num_frames": 9, "data_blob_path": blob, "chunk_specs": [spec]}
    assert generate_refusal(server, **request)["code"] == "invalid_field"


def test_shapes_whose_product_overflows(server: Frontend, blob: str) -> None:
    for sides in ([2**31, 2**31], [2**32 - 1, 2**32 - 1], [2**16, 2**16]):
        for shape in ([1, 3, *sides, 4], [1, 3, 1, *sides]):
            spec = {"chunk": 0, "vace_frames_offset": 0, "vace_frames_shape": shape}
            error = generate_refusal(server, **PROBE, data_blob_path=blob, chunk_specs=[spec])
            assert error["code"] == "invalid_field"


def test_blobs_that_look_like_a_video(server: Frontend, subtests: pytest.Subtests) -> None:
    """A blob whose first bytes read as a video header is no video, whatever it is called."""
    for ndim in (0, 3, 4, 5, 0x464C457F, U32 - 1):
        name = server.upload_data(struct.pack("<5I", ndim, U32 - 1, U32 - 1, U32 - 1, 3) + bytes(100))
        for claimed in (name, name.replace("blob-", "video-"), f"../blobs/{name}", name.replace("blob-", "output-")):
            with subtests.test(ndim=ndim, claimed=claimed):
                error = generate_refusal(server, pipeline_id="passthrough", prompt="", input_path=claimed)
                assert error["code"] == "unknown_path"
        (server.data_dir / "blobs" / name).unlink()


# -- JSON -----------------------------------------------------------------------------------------------------

START = b'{"pipeline_id": "probe", "prompt": "x", "num_frames": 1, '
LOADING = b'{"pipeline_ids": ["probe"], "load_params": {"a": '
DEEP = 100_000
BAD_JSON = {
    "deep lists": b"[" * DEEP,
    "deep lists, closed": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep objects, closed": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep in a field": START + b'"input_path": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep in load_params": LOADING + b"[" * DEEP + b"]" * DEEP + b"}}",
    "deep objects in load_params": LOADING + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}}",
    "invalid UTF-8": START + b'"input_path": "\xff\xfe"}',
    "overlong UTF-8": START + b'"input_path": "\xc0\xaf"}',
    "surrogates as UTF-8": START + b'"input_path": "\xed\xa0\x80"}',
    "a lone surrogate": START + b'"input_path": "\\ud800"}',
    "a swapped surrogate pair": START + b'"input_path": "\\udc00\\ud800"}',
    "a lone surrogate in load_params": LOADING + b'"\\ud800"}}',
    "UTF-16": '{"pipeline_id": "probe"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "control characters": START + b'"input_path": "\x01"}',
    "more after the end": b"{} {}",
    "NaN": START + b'"noise_scale": NaN}',
    "Infinity": START + b'"seed": -Infinity}',
    "NaN in load_params": LOADING + b"NaN}}",
    "1e400": START + b'"noise_scale": 1e400}',
    "1e400 in load_params": LOADING + b"1e400}}",
    "a huge integer": START + b'"seed": 1' + b"0" * 4000 + b"}",
    "a huger integer": START + b'"seed": 1' + b"0" * 400_000 + b"}",
    "a huge integer in a spec": START + b'"chunk_specs": [{"chunk": 0, "seed": 1' + b"0" * 4000 + b"}]}",
    "a huge chunk": START + b'"chunk_specs": [{"chunk": 1' + b"0" * 4000 + b', "seed": -1}]}',
    "a huge number of frames": START + b'"num_frames": -1' + b"0" * 4000 + b"}",
    "repeated keys": START + b'"num_frames": 0}',
    "repeated specs": START + b'"chunk_specs": [], "chunk_specs": [{"chunk": 0, "seed": -1}]}',
    "a repeated chunk": START + b'"chunk_specs": [{"chunk": 0, "chunk": -1}]}',
    "a long text": START + b'"input_path": "' + b"x" * 5_000_000 + b'"}',
    "a long number": START + b'"num_frames": "' + b"x" * 5_000_000 + b'"}',
    "a long key": START + b'"' + "\U0001f600".encode() * 1_000_000 + b'": 1}',
    "a long image": START + b'"chunk_specs": [{"chunk": 0, "first_frame_image": "' + b"/" * 5_000_000 + b'"}]}',
    "a long prompt": START + b'"chunk_specs": [{"chunk": 0, "text": "' + b"\\u0000" * 100_001 + b'"}]}',
    "long LoRA names": START
    + b'"lora_scales": {'
    + b",".join(b'"%s%d": 1' % ("\U0001f600".encode() * 4000, number) for number in range(200))
    + b"}}",
    "many specs": START + b'"chunk_specs": [' + b",".join(b'{"chunk": %d}' % index for index in range(10_000)) + b"]}",
    "many specs of one chunk": START + b'"chunk_specs": [' + b'{"chunk": 0}, ' * 9_999 + b'{"chunk": 0}]}',
    "too many specs": START + b'"chunk_specs": [' + b'{"chunk": 0}, ' * 200_000 + b"{}]}",
    "too many prompts": b'{"pipeline_id": "probe", "prompt": [' + b"0, " * 1_000_000 + b"0]}",
    "too many sides": START + b'"chunk_specs": [{"chunk": 0, "vace_masks_shape": [' + b"0, " * 1_000_000 + b"0]}]}",
    "too many keys": b"{" + b", ".join(b'"%d": 1' % number for number in range(200_000)) + b"}",
    "too many pipelines": b'{"pipeline_ids": [' + b'"", ' * 2_000_000 + b'""]}',
    "large load_params": LOADING + b'"' + b"x" * MAX_LOAD_PARAMS_CHARACTERS + b'"}}',
    "not an object": b"null",
    "empty": b"",
}


def test_json_that_is_not_a_request(server: Frontend, subtests: pytest.Subtests) -> None:
    for name, body in BAD_JSON.items():
        with subtests.test(name):
            error = post(server, LOAD if b"pipeline_ids" in body[:20] else GENERATE, body)
            assert error["code"] in ("bad_json", "invalid_field", "unknown_path")
            assert len(str(error["message"])) < 1000


def test_the_codes_of_bad_json(server: Frontend) -> None:
    for body in (b"", b"{", b"\xff\xfe{}", b"[" * DEEP):
        assert post(server, GENERATE, body)["code"] == "bad_json"
    for body in (b"[]", START + b'"noise_scale": NaN}', START + b'"seed": 1e400}'):
        assert post(server, GENERATE, body)["code"] == "invalid_field"


def test_the_largest_load_params_are_accepted(server: Frontend) -> None:
    value = "x" * (MAX_LOAD_PARAMS_CHARACTERS - len('{"a": ""}'))
    answer = http.post(server.url + LOAD, json={"pipeline_ids": ["probe"], "load_params": {"a": value}})
    assert answer.json() == {"status": "loaded", "ignored": ["a"]}
    assert http.get(f"{server.url}/api/v1/pipeline/status").json()["load_params"] == {"a": value}


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8), st.lists), st.text())
@settings(max_examples=60, derandomize=True)
def test_any_value_in_any_field(server: Frontend, value: object, name: str) -> None:
    for bad in ("num_frames", "seed"):
        body = {"pipeline_id": "probe", "prompt": "x", name: value, bad: [value]}
        post(server, GENERATE, json.dumps(body).encode(errors="surrogatepass"))


# -- Images ---------------------------------------------------------------------------------------------------


def png(width: int, height: int, rows: bytes) -> bytes:
    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


BAD_IMAGES = {
    "a bomb": png(30_000, 30_000, bytes(10_000_000)),
    "a thin bomb": png(U32 // 2 - 1, 1, b""),
    "one row too many": png(4096, 4097, bytes(10_000)),
    "cut off": png(64, 64, bytes(64 * (64 * 3 + 1)))[:-30],
    "rows missing": png(64, 64, bytes(100)),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "GIF and JavaScript": b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)//",
    "PDF and PNG": b"%PDF-1.4\n" + png(1, 1, bytes(4)),
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "gzip": gzip.compress(png(1, 1, bytes(4))),
    "a path": b"/etc/passwd",
}


def test_files_that_are_not_images(server: Frontend, subtests: pytest.Subtests) -> None:
    for name, data in BAD_IMAGES.items():
        with subtests.test(name):
            assert post(server, ASSETS, data)["code"] == "bad_image"
            url = "data:image/png;base64," + base64.b64encode(data).decode()
            for spec in ({"first_frame_image": url}, {"vace_ref_images": [url]}):
                error = generate_refusal(server, **PROBE, chunk_specs=[{"chunk": 0, **spec}])
                assert error["code"] == "invalid_field"
                assert url[30:60] not in str(error["message"]) or len(data) < 30


# -- Encoded bodies -------------------------------------------------------------------------------------------


def test_bodies_are_not_decompressed(server: Frontend) -> None:
    """100 KB that would become 100 MB are refused as JSON, as an image and as a video of another size."""
    bomb = gzip.compress(bytes(100_000_000))
    before = server.rss_bytes()
    for path in (GENERATE, LOAD, ASSETS, UPLOAD):
        for coding in ("gzip", "deflate", "br", "gzip, gzip"):
            post(server, path, bomb, **SHAPE, **{"Content-Encoding": coding})
    assert server.rss_bytes() - before < 64 * 2**20


def test_forms_are_not_parsed(server: Frontend) -> None:
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data", "application/x-www-form-urlencoded"):
        body = b'--x\r\nContent-Disposition: form-data; name="pipeline_id"\r\n\r\nprobe\r\n--x--\r\n'
        for path in (GENERATE, LOAD, ASSETS, UPLOAD):
            post(server, path, body, **SHAPE, **{"Content-Type": kind})


def test_clients_that_expect_100_continue_are_answered(server: Frontend) -> None:
    for path in (GENERATE, ASSETS, UPLOAD):
        refusal_of(server, f"POST {path}", "Expect: 100-continue", "X-Video-Frames: 0", body=b"{}")


def test_a_refusal_does_not_wait_for_the_body(server: Frontend) -> None:
    for line in (f"POST {GENERATE}", f"POST {UPLOAD}", f"GET {DOWNLOAD}?path=x"):
        refusal_of(server, line, "X-Video-Frames: 0", "Origin: http://evil", body=b"{", length=2**40)
