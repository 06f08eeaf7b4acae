"""Host names: which are this machine's own, and which origin is the server itself."""

import pytest

from frontend.auth import is_loopback_address, is_same_origin
from frontend.settings import Authority

LOCAL = [
    *("localhost", "localhost:8000", "LOCALHOST:1", "localhost.", "localhost.:80", "localhost:"),
    *("a.localhost", "a.b-c.localhost:8000", "A.Localhost."),
    *("127.0.0.1", "127.0.0.1:65535", "127.255.3.4:80", "127.0.0.1."),
    *("[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::1%lo]", "[::1%25lo]:1"),
]
OTHER = [
    *("evil.example", "evil.example:8000", "localhost.evil.example", "notlocalhost", "evil-localhost", "localhosts"),
    *("127.0.0.1.evil.example", "127.0.0.1.nip.io", "126.0.0.1", "128.0.0.1", "10.0.0.1", "0.0.0.0", "1.0.0.127"),
    *("[::]", "[::2]", "[fe80::1]", "[::ffff:10.0.0.1]", "[1::1]", "xn--localhost-xyz", "localhost..", ".localhost"),
    *("127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.256", "1270.0.0.1"),
]
NONE = [
    *("", ":", ":80", " ", "localhost localhost", " localhost", "localhost ", "localhost,evil.example", "a/b", "a?b"),
    *(
        "user@localhost",
        "localhost@evil.example",
        "user:pw@localhost",
        "localhost:80:80",
        "localhost:x",
        "localhost:-1",
    ),
    *("localhost:123456", "::1", "[::1", "::1]", "[::1]x", "[]", "[localhost]", "http://localhost", "localhost\\x"),
    *("localhost#", "localhost\t", "localhost\n", "\x00", "localhost:-1", "f\u00edlm"),
]


def test_names_of_this_machine_are_loopback(subtests: pytest.Subtests) -> None:
    for text in LOCAL:
        with subtests.test(text):
            host = Authority.parse(text)
            assert host is not None
            assert host.is_loopback


def test_other_names_are_not_loopback(subtests: pytest.Subtests) -> None:
    for text in OTHER + NONE:
        with subtests.test(ascii(text)):
            host = Authority.parse(text)
            assert host is None or not host.is_loopback
            assert (host is None) == (text in NONE)


def test_hosts_that_are_allowed_by_name() -> None:
    allowed = [host for name in ("film.example", "10.0.0.1:8000", "[fe80::1]") if (host := Authority.parse(name))]
    for text, expected in (
        ("film.example", True),
        ("FILM.example:1234", True),
        ("10.0.0.1:8000", True),
        ("10.0.0.1:8001", False),
        ("10.0.0.1", False),
        ("[FE80::1]:5", True),
        ("a.film.example", False),
        ("film.example.evil.example", False),
    ):
        host = Authority.parse(text)
        assert host is not None
        assert host.is_among(allowed) is expected, text


ORIGINS = [
    ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
    ("HTTP://Film.Example:8000", "film.example:8000", True),
    ("https://film.example", "film.example", True),  # a proxy speaks TLS
    ("https://film.example", "film.example:443", True),
    ("https://film.example:443", "film.example", True),
    ("http://film.example", "film.example:80", True),
    ("http://[::1]:8000", "[::1]:8000", True),
    ("https://film.example", "film.example:80", False),
    ("http://film.example", "film.example:443", False),
    ("http://film.example:8001", "film.example:8000", False),
    ("http://film.example:0", "film.example", False),
    ("http://localhost", "localhost:8000", False),
    ("http://evil.example", "film.example", False),
    ("http://film.example.evil.example", "film.example", False),
    *((f"{scheme}://film.example", "film.example", False) for scheme in ("chrome-extension", "file", "ftp", "ws")),
    ("null", "film.example", False),
    ("null", "null", False),
    ("film.example", "film.example", False),
    ("//film.example", "film.example", False),
    ("http://film.example/", "film.example", False),
    ("http://x@film.example", "film.example", False),
    ("http://film.example, http://film.example", "film.example", False),
    ("http://film.example http://film.example", "film.example", False),
    ("http://", "film.example", False),
    ("", "film.example", False),
]


def test_an_origin_is_the_servers_own_if_host_and_port_are_the_same(subtests: pytest.Subtests) -> None:
    for origin, host, expected in ORIGINS:
        with subtests.test(origin, host=host):
            authority = Authority.parse(host)
            assert authority is not None
            assert is_same_origin(origin, authority) is expected


def test_addresses_to_listen_on() -> None:
    for address in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert is_loopback_address(address)
    for address in ("0.0.0.0", "::", "", "10.0.0.1", "fe80::1%eth0"):
        assert not is_loopback_address(address)
