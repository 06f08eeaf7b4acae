"""Bodies and answers of /api/v1/generations: all fields with their limits."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .jobs import OnDisconnect, State
from .schema import INTEGER, MAX_REF_IMAGES, ChunkSpec, Dimension, ErrorDetail, GenerateRequest, ImageName, _Model

ID_PATTERN = r"[A-Za-z0-9_-]{1,64}"
MAX_PAGE = 100
_MAX_IMAGE_SIDE = 16_384
_SIZE = "\0"  # what the names of images that are only sizes start with; no asset and no data URL does


class SubmitRequest(GenerateRequest):
    """The body of PUT /api/v1/generations/{id} and POST /api/v1/generations: a GenerateRequest and more.

    In an optional field null, "" and [] mean unset: the field's default.
    """

    on_disconnect: OnDisconnect = Field(
        "continue", description="cancel: it ends when nobody has followed it for FILMSTRIP_REATTACH_S."
    )

    def generate_request(self) -> GenerateRequest:
        """The part that decides what is generated."""
        names = GenerateRequest.model_fields.keys()
        values = {name: getattr(self, name) for name in names}
        return GenerateRequest.model_construct(_fields_set=self.model_fields_set & names, **values)


class ImageSize(BaseModel):
    """The size of an image that is not uploaded yet."""

    model_config = ConfigDict(extra="forbid")

    width: Annotated[int, Field(ge=1, le=_MAX_IMAGE_SIDE), INTEGER]
    height: Annotated[int, Field(ge=1, le=_MAX_IMAGE_SIDE), INTEGER]


def _size_as_name(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    try:
        size = ImageSize.model_validate(value)
    except ValueError:
        raise ValueError(
            f"an image that stands for another one must be width and height, whole numbers from 1 to {_MAX_IMAGE_SIDE}"
        ) from None
    return f"{_SIZE}{size.width}x{size.height}"


_Image = Annotated[ImageName, BeforeValidator(_size_as_name, json_schema_input_type=str | ImageSize)]


class DryRunChunkSpec(ChunkSpec):
    """A ChunkSpec in which {"width", "height"} can stand for an image."""

    vace_ref_images: Annotated[list[_Image], Field(max_length=MAX_REF_IMAGES)] | None = None
    first_frame_image: _Image | None = None
    last_frame_image: _Image | None = None


class UploadSizes(_Model):
    """The sizes of files that are not uploaded yet."""

    input_shape: Annotated[list[Dimension], Field(min_length=4, max_length=4)] | None = Field(
        None, description="[T, H, W, C], in place of input_path."
    )
    blob_bytes: Annotated[int, Field(ge=1, le=2**63 - 1), INTEGER] | None = Field(
        None, description="In place of data_blob_path."
    )


class DryRunRequest(SubmitRequest):
    """The body of POST /api/v1/generations?dry_run=1."""

    chunk_specs: Annotated[list[DryRunChunkSpec], Field(fail_fast=True)] | None = None  # type: ignore[assignment]
    uploads: UploadSizes | None = Field(None, description="Stand for files that are not uploaded yet.")


def image_size(name: str) -> tuple[int, int] | None:
    """(height, width) of an image that is only a size; None for an asset or a data URL."""
    if not name.startswith(_SIZE):
        return None
    width, _, height = name.removeprefix(_SIZE).partition("x")
    return int(height), int(width)


class LinksAnswer(BaseModel):
    """Paths on this server, without a proxy's prefix."""

    self: str
    events: str
    cancel: str
    frames: str
    output: str | None = Field(None, description="Once there is an output.")


class SummaryAnswer(BaseModel):
    """A generation, without its request."""

    id: str
    state: State
    position: int | None = Field(description="1: the next one; null unless it waits.")
    chunk: int = Field(description="Chunks generated so far.")
    total_chunks: int
    frames: int = Field(description="Frames generated so far.")
    num_frames: int
    fps: float | None
    eta_s: float | None
    created_at: float = Field(description="Unix time in seconds, like the other times.")
    started_at: float | None
    ended_at: float | None
    expires_at: float | None
    seed: int = Field(description="The number used.")
    unused: list[str]
    error: ErrorDetail | None
    output_path: str | None
    video_shape: list[int] | None = Field(description="[T, H, W, C]")
    links: LinksAnswer


class GenerationAnswer(SummaryAnswer):
    """A generation."""

    request: dict[str, Any] = Field(description="What was sent, with the client's load parameters.")


class GenerationsAnswer(BaseModel):
    """Some of the client's generations, newest first."""

    generations: list[SummaryAnswer]
    next: str | None = Field(description="`after` of the next page; null if there is none.")


class CancelGenerationAnswer(BaseModel):
    """What the cancel does: `cancelled` at once, `cancelling` after the current chunk, `idle` if it had ended."""

    status: Literal["cancelling", "cancelled", "idle"]


class ChunkAnswer(BaseModel):
    """The frames of one chunk."""

    start: int
    frames: int


class DryRunAnswer(BaseModel):
    """What a request would generate."""

    height: int
    width: int
    num_chunks: int
    chunks: list[ChunkAnswer]
    unused: list[str]
