"""Every setting, its default and what it means; read once from the environment (`FILMSTRIP_*`) and from secrets."""

import hashlib
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from .hosts import Authority

KIB = 2**10
MIB = 2**20
GIB = 2**30
MINUTES = 60.0
HOURS = 3600.0

SECRETS_DIR = Path("/run/secrets")
"""Where container engines put secrets, a file each: `filmstrip_api_keys` is `FILMSTRIP_API_KEYS`."""

_PARENT = Path(__file__).resolve().parent.parent
"""The checkout, or `filmstrip` in site-packages: both have a folder `model_repository`."""
_IN_CHECKOUT = (_PARENT / "pyproject.toml").is_file()
MODELS_DIR = (_PARENT if _IN_CHECKOUT else Path.cwd()) / "models"
"""Where the export writes models; made when the embedded Triton starts with the default repositories."""

_CLIENT = re.compile(r"[A-Za-z0-9_-]{1,32}")

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class LogFormat(StrEnum):
    """How log lines look."""

    JSON = "json"
    TEXT = "text"


class ApiKey(NamedTuple):
    """A client's name, under which its files are kept, and a key of it."""

    client: str
    key: str

    def __repr__(self) -> str:  # a key does not belong in a log
        return f"ApiKey({self.client})"


def _default_repositories() -> tuple[Path, ...]:
    """The models that come with the code, and those that were exported, where there can be any.

    An installed server never makes a folder for exports: it takes `models` in its working directory where there is one.
    """
    shipped = _PARENT / "model_repository"
    has_exports = MODELS_DIR.is_dir() or (_IN_CHECKOUT and shipped.is_dir() and os.access(_PARENT, os.W_OK))
    return (shipped, MODELS_DIR) if has_exports else (shipped,)


class Settings(BaseSettings):
    """The settings of one frontend; docs/operations.md lists them, and a test holds it to that."""

    model_config = SettingsConfigDict(env_prefix="FILMSTRIP_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        (), description="Keys that clients must send, each `client:key` or a key alone, separated by commas."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins whose web pages may use the API, separated by commas, or `*`."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Other names that a server on loopback without keys answers to, separated by commas, or `*`."
    )
    data_dir: Path = Field(Path("data"), description="Folder of uploads and outputs; one frontend each.")
    log_format: LogFormat = Field(LogFormat.TEXT, description="`json` or `text` log lines.")
    log_level: LogLevel = Field("INFO", description="`DEBUG`, `INFO`, `WARNING` or `ERROR`: the least that is logged.")
    max_connections: int = Field(
        4096, gt=0, description="Most open connections; fewer where the process may not open enough files."
    )

    embedded: bool = Field(False, description="Start a Triton of our own, on a Unix socket.")
    triton_url: str = Field(
        "127.0.0.1:8001", description="gRPC address of Triton when it is not embedded; `unix:` too."
    )
    triton_secret: str = Field(
        "", repr=False, description="Secret of Triton's restricted protocols; the embedded one needs none."
    )
    model_repository: Annotated[tuple[Path, ...], NoDecode] = Field(
        default_factory=_default_repositories,
        description="Model repositories of the embedded Triton, separated by `:`.",
    )
    triton_start_timeout_s: float = Field(5 * MINUTES, gt=0, description="Longest start of the embedded Triton.")
    model_restart_window_s: float = Field(
        60.0,
        ge=0,
        description="A model of the embedded Triton that has died, and dies again within this time after it was loaded "
        "again, is left unloaded.",
    )

    shared_memory: bool = Field(True, description="Pass arrays through /dev/shm where Triton accepts it.")
    uploads_in_shm: bool = Field(False, description="Keep uploads in /dev/shm, so that chunks are not copied.")
    shm_upload_bytes: int = Field(4 * GIB, ge=0, description="Most bytes of uploads in /dev/shm; others go to disk.")

    upload_bytes: int = Field(2 * GIB, gt=0, description="Largest video of /generate/upload, without its header.")
    blob_bytes: int = Field(2 * GIB, gt=0, description="Largest body of /generate/upload-data.")
    asset_bytes: int = Field(32 * MIB, gt=0, description="Largest image of /assets.")
    json_bytes: int = Field(16 * MIB, gt=0, description="Largest JSON body.")
    json_total_bytes: int = Field(64 * MIB, gt=0, description="Most bytes of all JSON bodies held at the same time.")
    refused_body_bytes: int = Field(64 * MIB, ge=0, description="What is read of a refused body before closing.")
    body_timeout_s: float = Field(60.0, gt=0, description="Longest pause within a request body.")

    body_bytes_per_s: int = Field(4 * KIB, ge=0, description="Least average rate of a request body, after that time.")
    client_timeout_s: float = Field(
        2 * MINUTES, gt=0, description="How long a client may take in nothing of what is sent."
    )

    downloads: int = Field(256, gt=0, description="Most downloads at once; one whose reader stopped takes half a MiB.")

    store_bytes: int = Field(32 * GIB, gt=0, description="Most bytes of all stored files together.")
    store_disk_share: float = Field(0.8, gt=0, le=1, description="Most of the free disk that stored files may take.")
    store_files: int = Field(1000, gt=0, description="Most stored files.")
    store_ttl_s: float = Field(1 * HOURS, gt=0, description="How long uploads and outputs live.")

    chunk_bytes: int = Field(1 * GIB, gt=0, description="Most bytes of arrays that one chunk may take to Triton.")
    chunk_timeout_s: float = Field(10 * MINUTES, gt=0, description="Longest chunk before its generation fails.")
    sequence_start_timeout_s: float = Field(10.0, gt=0, description="Longest wait for a free slot in Triton.")
    sequence_end_timeout_s: float = Field(30.0, gt=0, description="Longest wait for Triton to end a sequence.")
    keep_alive_s: float = Field(
        10.0,
        gt=0,
        le=15,
        description="Longest silence of an event stream before a comment; at most 15.",
    )
    shutdown_timeout_s: float = Field(3.0, gt=0, description="How long open requests may take at shutdown.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags win over the environment, and that over secrets; see pydantic-settings."""
        if not SECRETS_DIR.is_dir():  # the source would warn
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

    @field_validator("cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(_parts(value)) if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != "*" and Authority.parse(name) is None:
                raise ValueError(f"each is a host, or host:port, without a scheme; got {name[:80]!r}")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        return tuple(_api_key(part) for part in _parts(value)) if isinstance(value, str) else value

    @field_validator("*", mode="before")  # the last of them comes first
    @classmethod
    def _drop_byte_order_mark(cls, value: object) -> object:
        """Editors on Windows begin a file with one, and so a secret, or a variable that is filled from a file."""
        return value.removeprefix("\ufeff") if isinstance(value, str) else value


OTHER_VARIABLES = frozenset(f"FILMSTRIP_{name}" for name in ("SERVER", "TOKEN", "PIPELINE", "MODELS", "CHECKPOINTS"))
"""What the clients and deploy/compose.yaml read."""


def unknown_variables(names: Iterable[str]) -> dict[str, str | None]:
    """Which names of environment variables begin as ours do and mean nothing, each with a close match or None."""
    known = {f"FILMSTRIP_{field.upper()}" for field in Settings.model_fields} | OTHER_VARIABLES
    unknown = sorted(name for name in names if name.upper().startswith("FILMSTRIP_") and name.upper() not in known)
    return {name: next(iter(get_close_matches(name.upper(), known, 1, 0.8)), None) for name in unknown}


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _api_key(text: str) -> ApiKey:
    client, colon, key = text.partition(":")
    if not colon:  # a client of its own, whose name does not tell the key
        return ApiKey(f"key-{hashlib.sha256(text.encode()).hexdigest()[:16]}", text)
    if not _CLIENT.fullmatch(client) or not key:
        raise ValueError("each is client:key or a key; a client's name has letters, digits, - and _, at most 32")
    return ApiKey(client, key)
