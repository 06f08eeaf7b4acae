"""What no client should send, over the wire: each is refused small, quickly and in the one shape, and does no harm."""

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
def no_harm(server: Frontend) -> Iterator[None]:
    """All of this module together leaves the server as it was, and not one traceback in its log."""
    before = count_tracebacks(server)
    with assert_recovers(server):
        yield
    assert count_tracebacks(server) == before


@pytest.fixture(autouse=True)
def nothing_left(server: Frontend) -> Iterator[None]:
    """No test leaves a file behind or takes the slot."""
    before = server.stored()
    yield
    server.wait_idle()
    eventually(lambda: server.stored() == before)


def post(server: Frontend, path: str, body: bytes, **headers: str) -> dict[str, object]:
    fields = [f"{name}: {value}" for name, value in headers.items()]
    return refusal_of(server, f"POST {path}", *fields, body=body)


# -- Videos ---------------------------------------------------------------------------------------------------

SIDES = {"X-Video-Frames": "1", "X-Video-Height": "2", "X-Video-Width": "2"}
NO_COUNTS = [
    *("", " ", "0", "-1", "+1", "1.0", "1e3", "0x10", "1_0", "1 2", "1,1", "NaN", "None", "true", "../1"),
    *(str(U32), "9" * 11, "9" * 5000, "\u00b2", "\u00bd", "\u00e9", "1\u00a0", "1;2", "%31", "{1}"),
]


@pytest.mark.parametrize("value", NO_COUNTS, ids=lambda value: ascii(value)[:20])
def test_a_header_that_is_no_count(server: Frontend, value: str) -> None:
    for name in (*SIDES, "X-Video-Channels"):
        fields = [f"{header}: {given}" for header, given in (SIDES | {name: value}).items()]
        error = refusal_of(server, f"POST {UPLOAD}", *fields, body=bytes(12))
        assert (error["code"], error["field"]) == ("bad_header", name)


def test_a_header_given_twice(server: Frontend) -> None:
    for name in (*SIDES, "X-Video-Channels"):
        fields = [f"{header}: {given}" for header, given in (SIDES | {"X-Video-Channels": "3"}).items()]
        again = raw_request(f"POST {UPLOAD}", *fields, f"{name}: 3", body=bytes(12))
        assert check_refusal(server, send_raw(server.url, again))["code"] == "bad_header"


@given(st.lists(st.integers(1, U32 - 1) | st.sampled_from([1, 2, 2**16, 2**31, U32 - 1]), min_size=3, max_size=3))
@example([2**31, 2**31, 4])  # their product is 0 in 64 bits
@example([U32 - 1, U32 - 1, U32 - 1])
@settings(max_examples=50, derandomize=True)
def test_sizes_that_no_body_has(server: Frontend, sides: list[int]) -> None:
    headers = dict(zip(SIDES, map(str, sides), strict=True))
    error = post(server, UPLOAD, bytes(1), **headers)
    assert error["code"] == ("too_large" if 3 * int(np.prod(sides, dtype=object)) > 2**31 else "size_mismatch")


def test_a_body_shorter_or_longer_than_its_headers_say(server: Frontend) -> None:
    for length in (0, 1, 11, 13, 100_000):
        assert post(server, UPLOAD, bytes(length), **SIDES)["code"] == "size_mismatch"
        chunked = (bytes(1) for _ in range(min(length, 100)))
        answer = http.post(server.url + UPLOAD, content=chunked, headers=SIDES)
        assert check_refusal(server, answer)["code"] == "size_mismatch"


def test_a_body_that_ends_before_its_length_is_let_go(server: Frontend) -> None:
    fields = [f"{header}: {given}" for header, given in SIDES.items()]
    error = refusal_of(server, f"POST {UPLOAD}", *fields, body=bytes(3), length=100)
    assert error["code"] == "size_mismatch"  # at once and not after a minute: the length is known to be wrong
    answer = send_raw(server.url, raw_request(f"POST {UPLOAD}", *fields, body=bytes(12) + b"GET", length=12))
    uploaded = json.loads(answer.body)
    assert uploaded["shape"] == [1, 2, 2, 3]  # what follows the last request of a connection does not count
    assert http.delete(f"{server.url}/api/v1/files/{uploaded['input_path']}").status_code == 204


@pytest.mark.parametrize("length", ["-1", "+5", "5_0", "0x5", "5, 6", "9" * 30, "9" * 5000, "\u00b2", "5 5"])
@pytest.mark.parametrize("path", [UPLOAD, UPLOAD_DATA, ASSETS, GENERATE])
def test_a_length_that_is_none(server: Frontend, path: str, length: str) -> None:
    refusal_of(server, f"POST {path}", f"Content-Length: {length}")


@pytest.mark.parametrize("size", [b"zz", b"-1", b"", b"F" * 21, b"1" * 40_000])
def test_a_chunk_of_no_size(server: Frontend, size: bytes) -> None:
    fields = [f"{header}: {given}" for header, given in SIDES.items()]
    head = raw_request(f"POST {UPLOAD}", *fields, "Transfer-Encoding: chunked")
    check_refusal(server, send_raw(server.url, head + size + b"\r\n" + bytes(12) + b"\r\n0\r\n\r\n"))


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
    """An array that ends within the blob is taken, at any offset; one that ends a byte beyond is not."""
    shape, item = KINDS[kind]
    last = BLOB_BYTES - item * int(np.prod(shape))
    offset = data.draw(st.integers(max(0, last - 5), last + 5) | st.integers(0, 2**63 - 1))
    spec = {"chunk": 0, f"{kind}_offset": offset, f"{kind}_shape": shape}
    wanted = PROBE | {"num_frames": 1, "data_blob_path": blob, "chunk_specs": [spec]}
    if offset <= last:
        event, made = server.generate(**wanted)[-1]
        assert event == "complete"
        (server.data_dir / "outputs" / made["output_path"]).unlink()
    else:
        error = generate_refusal(server, **wanted)
        assert (error["code"], error["field"]) == ("invalid_field", f"chunk_specs[0].{kind}_offset")


@given(st.sampled_from(sorted(KINDS)), st.data())
@settings(max_examples=100, derandomize=True)
def test_arrays_of_no_shape(server: Frontend, blob: str, kind: str, data: st.DataObject) -> None:
    shape, _ = KINDS[kind]
    sides = data.draw(st.lists(SIDE, min_size=len(shape) - 1, max_size=len(shape) + 1).filter(lambda it: it != shape))
    offset = data.draw(st.sampled_from([0, 1, 2, 3, 2**31, 2**63 - 1]))
    spec = {"chunk": 2, f"{kind}_offset": offset, f"{kind}_shape": sides}  # no such chunk, should all else be right
    wanted = PROBE | {"num_frames": 9, "data_blob_path": blob, "chunk_specs": [spec]}
    assert generate_refusal(server, **wanted)["code"] == "invalid_field"


@pytest.mark.parametrize("sides", [[2**31, 2**31], [2**32 - 1, 2**32 - 1], [2**16, 2**16]])
def test_products_that_overflow(server: Frontend, blob: str, sides: list[int]) -> None:
    for shape in ([1, 3, *sides, 4], [1, 3, 1, *sides]):
        spec = {"chunk": 0, "vace_frames_offset": 0, "vace_frames_shape": shape}
        assert generate_refusal(server, **PROBE, data_blob_path=blob, chunk_specs=[spec])["code"] == "invalid_field"


@pytest.mark.parametrize("ndim", [0, 3, 5, 0x464C457F, U32 - 1])
def test_a_file_that_claims_to_be_a_video(server: Frontend, ndim: int) -> None:
    """A blob whose first bytes read as a header of so many dimensions is no video, whoever says so."""
    name = server.upload_data(struct.pack("<5I", ndim, U32 - 1, U32 - 1, U32 - 1, 3) + bytes(100))
    try:
        for claimed in (name, name.replace("blob-", "video-"), f"../blobs/{name}"):
            error = generate_refusal(server, pipeline_id="passthrough", prompt="", input_path=claimed)
            assert error["code"] == "unknown_path"
    finally:
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
    "no UTF-8": START + b'"input_path": "\xff\xfe"}',
    "overlong UTF-8": START + b'"input_path": "\xc0\xaf"}',
    "surrogates as UTF-8": START + b'"input_path": "\xed\xa0\x80"}',
    "a lone surrogate": START + b'"input_path": "\\ud800"}',
    "a pair turned round": START + b'"input_path": "\\udc00\\ud800"}',
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
    "keys given twice": START + b'"num_frames": 0}',
    "specs given twice": START + b'"chunk_specs": [], "chunk_specs": [{"chunk": 0, "seed": -1}]}',
    "a chunk given twice": START + b'"chunk_specs": [{"chunk": 0, "chunk": -1}]}',
    "a long text": START + b'"input_path": "' + b"x" * 5_000_000 + b'"}',
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
    "no object": b"null",
    "nothing": b"",
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_is_no_request(server: Frontend, name: str) -> None:
    body = BAD_JSON[name]
    error = post(server, LOAD if b"pipeline_ids" in body[:20] else GENERATE, body)
    assert error["code"] in ("bad_json", "invalid_field", "unknown_path")


def test_load_params_as_large_as_they_may_be_come_back(server: Frontend) -> None:
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


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_images_that_are_none(server: Frontend, name: str) -> None:
    data = BAD_IMAGES[name]
    assert post(server, ASSETS, data)["code"] == "bad_image"
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for spec in ({"first_frame_image": url}, {"vace_ref_images": [url]}):
        error = generate_refusal(server, **PROBE, chunk_specs=[{"chunk": 0, **spec}])
        assert error["code"] == "invalid_field"
        assert url[30:60] not in str(error["message"]) or len(data) < 30


# -- Bodies in disguise ---------------------------------------------------------------------------------------


def test_bodies_are_not_decoded(server: Frontend) -> None:
    """A bomb of 100 KB that would be 100 MB stays what it is: bytes that are no JSON, no image, and of another size."""
    bomb = gzip.compress(bytes(100_000_000))
    before = server.rss_bytes()
    for path in (GENERATE, LOAD, ASSETS, UPLOAD):
        for coding in ("gzip", "deflate", "br", "gzip, gzip"):
            post(server, path, bomb, **SIDES, **{"Content-Encoding": coding})
    assert server.rss_bytes() - before < 64 * 2**20


def test_forms_are_not_parsed(server: Frontend) -> None:
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data", "application/x-www-form-urlencoded"):
        body = b'--x\r\nContent-Disposition: form-data; name="pipeline_id"\r\n\r\nprobe\r\n--x--\r\n'
        for path in (GENERATE, LOAD, ASSETS, UPLOAD):
            post(server, path, body, **SIDES, **{"Content-Type": kind})


def test_who_waits_for_leave_to_send_is_answered(server: Frontend) -> None:
    for path in (GENERATE, ASSETS, UPLOAD):
        sent = raw_request(f"POST {path}", "Expect: 100-continue", "X-Video-Frames: 0", body=b"{}")
        check_refusal(server, send_raw(server.url, sent))


@pytest.mark.parametrize("path", [GENERATE, UPLOAD, f"{DOWNLOAD}?path=x"])
def test_a_refusal_waits_little_for_a_body_that_never_comes(server: Frontend, path: str) -> None:
    line = f"GET {path}" if path.startswith(DOWNLOAD) else f"POST {path}"
    refusal_of(server, line, "X-Video-Frames: 0", "Origin: http://evil", body=b"{", length=2**40)
