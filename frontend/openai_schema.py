"""Bodies and answers of the endpoints that clients of OpenAI's videos API use."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from filmstrip.errors import FilmstripError, InvalidField
from filmstrip.geometry import DEFAULT_FPS, MAX_FRAMES, MAX_REQUEST_SIDE, MIN_SIDE

from .schema import (
    MAX_SECONDS,
    NUMBER,
    ChunkSpec,
    GenerateRequest,
    PageLength,
    PipelineId,
    Rate,
    SubmitRequest,
    validated,
)

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def _seconds(value: Any) -> Any:
    """A number, or the text of one, which OpenAI's clients send."""
    if not isinstance(value, str):
        return value
    if not _NUMBER.fullmatch(value):
        raise ValueError("must be a number")
    return float(value)


def _size(text: str) -> str:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("must be WIDTHxHEIGHT")
    if not all(MIN_SIDE <= int(side) <= MAX_REQUEST_SIDE for side in match.groups()):
        raise ValueError(f"sides must be from {MIN_SIDE} to {MAX_REQUEST_SIDE}")
    return text


class ListVideosQuery(BaseModel):
    """The query of GET /v1/videos."""

    limit: PageLength = Field(20, description="Most videos.")
    after: str | None = Field(None, description="Only those that follow this one.")
    order: Literal["desc", "asc"] = Field("desc", description="By age.")


class ImageReference(BaseModel):
    """An image in JSON, as OpenAI's clients send it."""

    model_config = ConfigDict(extra="forbid")

    image_url: str = Field(description="A data URL; the server fetches nothing.")


def _image_url(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    url = value.get("image_url")
    if not isinstance(url, str) or len(value) != 1:
        raise ValueError("must have image_url, a data URL, and nothing else")
    return url


_Seconds = Annotated[
    float,
    Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False),
    NUMBER,
    BeforeValidator(_seconds, json_schema_input_type=float | str),
]
_ReferenceText = Annotated[str, BeforeValidator(_image_url, json_schema_input_type=str | ImageReference)]


@dataclass(frozen=True)
class InputReference:
    """What a video starts with, as it is stored.

    Attributes:
        image: its first frame, an asset or a data URL.
        video: its input video.
        num_frames, fps: of the input video, as far as they are known.
        own_files: what was stored for this request alone.
    """

    image: str | None = None
    video: str | None = None
    num_frames: int | None = None
    fps: float | None = None
    own_files: tuple[str, ...] = ()


class VideoRequest(SubmitRequest):
    """The body of POST /v1/videos: OpenAI's fields, and any field of a GenerateRequest.

    In an optional field null, "" and [] mean unset: the field's default.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "longlive-small", "prompt": "a red square", "seconds": "4"}]}
    )

    pipeline_id: PipelineId | None = Field(None, description="Another name of `model`.")  # type: ignore[assignment]
    model: PipelineId | None = Field(None, description="A pipeline.")
    seconds: _Seconds | None = Field(None, description="Duration; `num_frames` takes precedence.")
    size: Annotated[str, AfterValidator(_size)] | None = Field(None, description="WIDTHxHEIGHT")
    fps: Rate | None = Field(None, description="Frames per second of the video file; 16 by default.")
    input_reference: _ReferenceText | None = Field(
        None,
        description="What the video starts with: a data URL or the name of an asset. In a form, an image file, or a "
        "video file as the input video.",
    )
    user: Any = Field(None, description="Ignored.")

    def openai_name(self, field: str, reference: InputReference) -> str:
        """What a field of the GenerateRequest is called in this request."""
        if reference.image is not None and field == f"chunk_specs[{self._first_spec}].first_frame_image":
            return "input_reference"
        if reference.video is not None and field == "input_path":
            return "input_reference"
        if field == "pipeline_id" and self.pipeline_id is None:
            return "model"
        if field in ("height", "width") and self.size is not None:
            return "size"
        if field == "num_frames" and "num_frames" not in self.model_fields_set and self.seconds is not None:
            return "seconds"
        return field

    @property
    def frame_size(self) -> tuple[int | None, int | None]:
        """Width and height; None where they are not given."""
        if self.size is None:
            return self.width, self.height
        width, height = map(int, self.size.split("x"))
        return width, height

    def starting_with(self, reference: InputReference) -> GenerateRequest:
        """The request in our own words.

        Raises:
            InvalidField: two fields contradict each other, or one is missing.
        """
        values: dict[str, Any] = {}
        if self.model is not None and self.pipeline_id not in (None, self.model):
            raise InvalidField("model: differs from pipeline_id", "model")
        values["pipeline_id"] = self.model or self.pipeline_id
        if values["pipeline_id"] is None:
            raise InvalidField("model: missing; GET /v1/models lists the models", "model")
        if self.size is not None:
            for name, side in zip(("width", "height"), self.frame_size, strict=True):
                if getattr(self, name) not in (None, side):
                    raise InvalidField(f"size: differs from {name}", "size")
                values[name] = side
        if "num_frames" not in self.model_fields_set:
            values |= self._length(reference)
        if reference.video is not None:
            if self.input_path is not None:
                raise InvalidField("input_reference: cannot be combined with input_path", "input_reference")
            values["input_path"] = reference.video
        if reference.image is not None:
            values["chunk_specs"] = self._specs_starting_with(reference.image)
        own = self.generate_request()
        return validated(GenerateRequest, {name: getattr(own, name) for name in own.model_fields_set} | values)

    def _length(self, reference: InputReference) -> dict[str, int]:
        """`num_frames`, if anything says how long the video is to be."""
        fps = self.fps or reference.fps or DEFAULT_FPS
        if self.seconds is not None:
            num_frames = max(1, round(self.seconds * fps))
            if num_frames > MAX_FRAMES:
                raise InvalidField(
                    f"seconds: {self.seconds:g} s at {fps:g} frames per second are {num_frames} frames, "
                    f"more than {MAX_FRAMES}",
                    "seconds",
                )
            return {"num_frames": num_frames}
        return {} if reference.num_frames is None else {"num_frames": min(reference.num_frames, MAX_FRAMES)}

    @property
    def _first_spec(self) -> int:
        """The place of the ChunkSpec of chunk 0, or the place after the last one."""
        specs = self.chunk_specs or ()
        return next((place for place, spec in enumerate(specs) if spec.chunk == 0), len(specs))

    def _specs_starting_with(self, image: str) -> list[ChunkSpec]:
        specs, place = list(self.chunk_specs or ()), self._first_spec
        if place == len(specs):
            return [*specs, ChunkSpec(chunk=0, first_frame_image=image)]
        if specs[place].first_frame_image is not None:
            raise InvalidField(
                f"input_reference: cannot be combined with chunk_specs[{place}].first_frame_image", "input_reference"
            )
        specs[place] = specs[place].model_copy(update={"first_frame_image": image})
        return specs


def openai_error(error: FilmstripError) -> dict[str, Any]:
    """The body of an error as OpenAI's clients read it."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.field, "code": error.code}}


class VideoErrorAnswer(BaseModel):
    """Why there is no video."""

    code: str
    message: str


class VideoAnswer(BaseModel):
    """A video that waits, is being generated, or has ended."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(description="Percent.")
    created_at: int = Field(description="Unix time in seconds, like the other times.")
    completed_at: int | None
    expires_at: int | None
    prompt: str | None
    seconds: str
    size: str = Field(description="WIDTHxHEIGHT")
    error: VideoErrorAnswer | None
    remixed_from_video_id: None = None


class VideosAnswer(BaseModel):
    """Some of the client's videos."""

    object: Literal["list"] = "list"
    data: list[VideoAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideoAnswer(BaseModel):
    """The video is deleted."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class ModelAnswer(BaseModel):
    """A pipeline, under the name that OpenAI's clients have for it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time in seconds at which the server was started.")
    owned_by: Literal["filmstrip"] = "filmstrip"


class ModelsAnswer(BaseModel):
    """The pipelines."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class OpenAIError(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorAnswer(BaseModel):
    """Every error of the endpoints under /v1 has this shape."""

    error: OpenAIError
