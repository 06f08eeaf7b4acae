"""Every setting with its default and meaning, read once from the environment (`FILMSTRIP_*`) and from secrets."""

import hashlib
import ipaddress
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

ENV_PREFIX = "FILMSTRIP_"
KIB = 2**10
MIB = 2**20
GIB = 2**30
MINUTES = 60.0
HOURS = 3600.0

SECRETS_DIR = Path("/run/secrets")
"""Where container engines mount secrets, one file each: `filmstrip_api_keys` is `FILMSTRIP_API_KEYS`."""

_HOME = Path(__file__).resolve().parent.parent  # a checkout, or the installed package `filmstrip`
_IS_CHECKOUT = (_HOME / "pyproject.toml").is_file()
MODELS_DIR = (_HOME if _IS_CHECKOUT else Path.cwd()) / "models"
"""Where the export writes models; created when the embedded Triton starts with the default repositories."""

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+(?:%[0-9a-z._~%-]+)?\]|[a-z0-9._~-]+)(?::([0-9]{0,5}))?", re.IGNORECASE)
_LOOPBACK_NAME = re.compile(r"(?:[a-z0-9_-]+\.)*localhost")
CLIENT_PATTERN = "[A-Za-z0-9_-]{1,32}"

_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off", "")

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class LogFormat(StrEnum):
    """Format of log lines."""

    JSON = "json"
    TEXT = "text"


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


class ApiKey(NamedTuple):
    """One API key, and the name of the client that owns the files made with it."""

    client: str
    key: str

    def __repr__(self) -> str:  # keep the key out of logs
        return f"ApiKey({self.client})"


def _default_repositories() -> tuple[Path, ...]:
    """The models that come with the code and, if there can be any, the exported ones."""
    shipped = _HOME / "model_repository"
    has_exports = MODELS_DIR.is_dir() or (_IS_CHECKOUT and shipped.is_dir() and os.access(_HOME, os.W_OK))
    return (shipped, MODELS_DIR) if has_exports else (shipped,)


class Settings(BaseSettings):
    """The settings of one server. A test compares them with the list in docs/operations.md."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        (),
        description="API keys, separated by commas, each `client:key` or a key alone; without any, no key is needed.",
    )
    session_secret: str = Field(
        "",
        repr=False,
        description="Secret in the cookies of browser sessions, the same for all servers behind one address; "
        "by default only the API keys are.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins of web pages that may use the API, separated by commas, or `*`."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Further host names that a loopback server without keys accepts, separated by commas, or `*`."
    )
    data_dir: Path = Field(Path("data"), description="Folder for uploads and outputs; no two servers may share one.")
    log_format: LogFormat = Field(LogFormat.TEXT, description="Format of the log: `json` or `text`.")
    log_level: LogLevel = Field(
        "INFO", description="Lowest level that is logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`."
    )
    max_connections: int = Field(
        4096, gt=0, description="Maximum number of open connections; lower if the process may not open enough files."
    )

    embedded: int = Field(
        0,
        ge=0,
        le=64,
        description="How many Tritons of our own to start, on Unix sockets; `true` is 1. Of several, each has one GPU.",
    )
    triton_url: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1:8001",),
        min_length=1,
        description="gRPC address of Triton if it is not embedded, `host:port` or `unix:PATH`; several are separated "
        "by commas.",
    )
    triton_secret: str = Field(
        "", repr=False, description="Secret of Triton's restricted protocols; the embedded Triton needs none."
    )
    model_repository: Annotated[tuple[Path, ...], NoDecode] = Field(
        default_factory=_default_repositories,
        description="Model repositories of the embedded Triton, separated by `:`.",
    )
    triton_start_timeout_s: float = Field(
        5 * MINUTES, gt=0, description="How long the embedded Triton may take to start."
    )
    model_restart_window_s: float = Field(
        60.0,
        ge=0,
        description="A model of the embedded Triton stays unloaded if its process dies again within this time after a "
        "reload.",
    )

    shared_memory: bool = Field(True, description="Pass arrays through /dev/shm if Triton accepts it.")
    uploads_in_shm: bool = Field(False, description="Keep uploads in /dev/shm, which saves a copy of each chunk.")
    shm_upload_bytes: int = Field(
        4 * GIB, ge=0, description="Maximum size of all uploads in /dev/shm; others go to disk."
    )

    upload_bytes: int = Field(
        2 * GIB, gt=0, description="Maximum size of a video sent to /generate/upload, without its header."
    )
    blob_bytes: int = Field(2 * GIB, gt=0, description="Maximum size of a body sent to /generate/upload-data.")
    asset_bytes: int = Field(32 * MIB, gt=0, description="Maximum size of an image sent to /assets.")
    json_bytes: int = Field(16 * MIB, gt=0, description="Maximum size of a JSON body.")
    json_total_bytes: int = Field(64 * MIB, gt=0, description="Maximum size of all JSON bodies held at the same time.")
    refused_body_bytes: int = Field(
        64 * MIB, ge=0, description="How much of a refused body is read before the connection closes."
    )
    body_timeout_s: float = Field(60.0, gt=0, description="Longest pause in a request body.")

    body_bytes_per_s: int = Field(
        4 * KIB, ge=0, description="Lowest average rate of a request body after FILMSTRIP_BODY_TIMEOUT_S."
    )
    client_timeout_s: float = Field(
        2 * MINUTES, gt=0, description="How long a client may go without reading what is sent to it."
    )

    downloads: int = Field(
        256, gt=0, description="Maximum number of simultaneous downloads; a stalled one takes half a MiB of memory."
    )

    store_bytes: int = Field(32 * GIB, gt=0, description="Maximum size of all stored files together.")
    store_disk_share: float = Field(
        0.8, gt=0, le=1, description="Largest share of the free disk space that stored files may take."
    )
    store_files: int = Field(1000, gt=0, description="Maximum number of stored files.")
    store_ttl_s: float = Field(1 * HOURS, gt=0, description="How long uploads and outputs are kept.")

    chunk_bytes: int = Field(1 * GIB, gt=0, description="Maximum size of one chunk's arrays.")
    chunk_timeout_s: float = Field(
        10 * MINUTES, gt=0, description="How long a chunk may take before its generation fails."
    )
    sequence_start_timeout_s: float = Field(10.0, gt=0, description="Longest wait for a free sequence slot in Triton.")
    sequence_end_timeout_s: float = Field(30.0, gt=0, description="Longest wait for Triton to end a sequence.")
    queue_length: int = Field(16, ge=0, description="How many generations of /generations may wait for their turn.")
    generate_queue_length: int = Field(
        0,
        ge=0,
        description="How many generations of /generate may wait; 0 answers 409 while another runs or waits.",
    )
    reattach_s: float = Field(
        15.0,
        ge=0,
        description="How long a generation with `on_disconnect: cancel` goes on while nobody follows its events.",
    )
    resume: bool = Field(
        False, description="Start generations of /generations again that a restart of the server interrupted."
    )
    keep_alive_s: float = Field(
        10.0,
        gt=0,
        le=15,
        description="Longest silence of an event stream before a comment is sent; at most 15.",
    )
    shutdown_timeout_s: float = Field(3.0, gt=0, description="How long open requests may take to finish at shutdown.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command-line flags override the environment, which overrides secrets; see pydantic-settings."""
        if not SECRETS_DIR.is_dir():  # the source would warn about it
            return init_settings, env_settings
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, secrets_dir=SECRETS_DIR)

    @field_validator("model_repository", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return tuple(Path(part) for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("model_repository")
    @classmethod
    def _once_each(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        once: dict[Path, Path] = {}
        for path in value:
            once.setdefault(path.resolve(), path)
        return tuple(once.values())

    @field_validator("embedded", mode="before")
    @classmethod
    def _number_of_tritons(cls, value: object) -> object:
        text = str(value).strip().lower()
        return 1 if text in _TRUE else 0 if text in _FALSE else value

    @field_validator("triton_url")
    @classmethod
    def _differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each Triton can be listed only once")
        return value

    @field_validator("cors_origins", "allowed_hosts", "triton_url", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(_parts(value)) if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != "*" and Authority.parse(name) is None:
                raise ValueError(f"each entry must be host or host:port, without a scheme; got {name[:80]!r}")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        return tuple(_api_key(part) for part in _parts(value)) if isinstance(value, str) else value

    @field_validator("*", mode="before")  # the last one declared runs first
    @classmethod
    def _drop_byte_order_mark(cls, value: object) -> object:
        """Windows editors start files with one, so secrets and variables filled from files may have it."""
        return value.removeprefix("\ufeff") if isinstance(value, str) else value


OTHER_VARIABLES = frozenset(f"{ENV_PREFIX}{name}" for name in ("SERVER", "TOKEN", "PIPELINE", "MODELS", "CHECKPOINTS"))
"""Variables of the client and of deploy/compose.yaml."""


def unknown_variables(names: Iterable[str]) -> dict[str, str | None]:
    """The names of environment variables that start like ours but are unknown, each with a close match or None."""
    known = {f"{ENV_PREFIX}{field.upper()}" for field in Settings.model_fields} | OTHER_VARIABLES
    unknown = sorted(name for name in names if name.upper().startswith(ENV_PREFIX) and name.upper() not in known)
    return {name: next(iter(get_close_matches(name.upper(), known, 1, 0.8)), None) for name in unknown}


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _api_key(text: str) -> ApiKey:
    client, colon, key = text.partition(":")
    if not colon:  # a client of its own, whose name does not reveal the key
        return ApiKey(f"key-{hashlib.sha256(text.encode()).hexdigest()[:16]}", text)
    if not re.fullmatch(CLIENT_PATTERN, client) or not key:
        raise ValueError(
            "each entry must be client:key or a key; a client name consists of 1 to 32 letters, digits, - and _"
        )
    return ApiKey(client, key)
