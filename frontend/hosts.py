"""Host names: whether one means this machine, and whether a web page's origin is the server itself."""

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple, Self

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+(?:%[0-9a-z._~%-]+)?\]|[a-z0-9._~-]+)(?::([0-9]{0,5}))?", re.IGNORECASE)
_ORIGIN = re.compile(r"(https?)://([^/?#\s]+)", re.IGNORECASE)
_LOOPBACK_NAME = re.compile(r"(?:[a-z0-9_-]+\.)*localhost")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Authority(NamedTuple):
    """A host in lower case, IPv6 addresses in brackets, and its port, if any."""

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse `host` or `host:port`; None for anything else, such as `user@host`."""
        found = _AUTHORITY.fullmatch(text)
        return cls(found[1].lower(), int(found[2]) if found[2] else None) if found else None

    @property
    def is_loopback(self) -> bool:
        """Whether it can only mean this machine: localhost, a name below it, 127.0.0.0/8 or [::1]."""
        host = self.host.removesuffix(".")
        if _LOOPBACK_NAME.fullmatch(host):
            return True
        try:
            if host.startswith("["):
                return ipaddress.IPv6Address(host.strip("[]").partition("%")[0]).is_loopback
            return ipaddress.IPv4Address(host).is_loopback
        except ValueError:
            return False

    def is_among(self, allowed: Iterable["Authority"]) -> bool:
        """Whether one of them is the same host, with the same port or without one."""
        return any(self.host == other.host and other.port in (None, self.port) for other in allowed)


def is_same_origin(origin: str, host: Authority) -> bool:
    """Whether an `Origin` header names this host and port by http or https.

    The scheme is not compared with the server's own, because TLS may end at a proxy.
    """
    found = _ORIGIN.fullmatch(origin)
    authority = Authority.parse(found[2]) if found else None
    if found is None or authority is None:
        return False
    default = _DEFAULT_PORTS[found[1].lower()]
    ports = [default if port is None else port for port in (authority.port, host.port)]
    return authority.host == host.host and ports[0] == ports[1]


def is_loopback_address(address: str) -> bool:
    """Whether an address to listen on, or a name for one, can only be reached from this machine."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        pass
    try:
        return ipaddress.ip_address(socket.gethostbyname(address)).is_loopback
    except (OSError, UnicodeError):  # then nothing can listen on it
        return True
