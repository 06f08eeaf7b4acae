"""Which bytes of which upload are the arrays of one chunk."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from filmstrip import contract
from filmstrip.contract import TensorSpec
from filmstrip.errors import InvalidField, counted
from filmstrip.geometry import FrameRun, fit_runs, input_runs
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape

from .schema import ChunkSpec, at_chunk

MODEL_CHANNELS = 3


class UploadField(StrEnum):
    """An upload that arrays are read from, by the request's field."""

    INPUT = "input_path"
    BLOB = "data_blob_path"


@dataclass(frozen=True)
class Extent:
    """Consecutive bytes of an upload's file."""

    upload: UploadField
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that is read from uploads.

    Attributes:
        spec: the tensor.
        shape: of the array.
        extents: the array's bytes, to be joined in this order.
    """

    spec: TensorSpec
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.spec.itemsize


@dataclass(frozen=True)
class ImagePlan:
    """A tensor of one or several images, decoded when their chunk is staged.

    Attributes:
        spec: the tensor.
        names: the images as the request names them.
        shape: of the tensor.
    """

    spec: TensorSpec
    names: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class InputSizes:
    """What a plan needs to know of the files and images that its request names.

    Attributes:
        input_shape: of the whole-video input.
        blob_bytes: size of the blob.
        image_shapes: [H, W, 3] of each image, by the name that the request gives it.
    """

    input_shape: VideoShape | None = None
    blob_bytes: int | None = None
    image_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class SpecRef:
    """A ChunkSpec and its place in the request's list, for messages."""

    spec: ChunkSpec
    position: int

    def refuse(self, name: str, why: str) -> InvalidField:
        """The error for one of its fields, naming chunk and field."""
        field = f"chunk_specs[{self.position}].{name}"
        return InvalidField(f"{at_chunk(field, self.spec.chunk)}: {why}", field)

    def blob_array(self, name: str, blob_bytes: int | None, itemsize: int) -> tuple[tuple[int, ...], int] | None:
        """Shape and offset of the array `name` in the blob, None where the spec has none.

        Raises:
            InvalidField: one of the two is missing, there is no blob, or the array lies outside it.
        """
        shape: list[int] | None = getattr(self.spec, f"{name}_shape")
        offset: int | None = getattr(self.spec, f"{name}_offset")
        if shape is None and offset is None:
            return None
        if shape is None or offset is None:
            missing, present = ("shape", "offset") if shape is None else ("offset", "shape")
            raise self.refuse(f"{name}_{missing}", f"missing, but {name}_{present} is set")
        if blob_bytes is None:
            raise self.refuse(f"{name}_offset", "the request has no data_blob_path")
        end = offset + math.prod(shape) * itemsize
        if end > blob_bytes:
            raise self.refuse(
                f"{name}_offset", f"{shape} at {offset} ends at {end}, the blob has {counted(blob_bytes, 'byte')}"
            )
        return tuple(shape), offset


def whole_input(index: int, num_frames: int, chunk_size: int, shape: VideoShape, num_output: int) -> TensorPlan:
    """The frames of the whole-video input that chunk `index` covers, for an output of `num_output` frames."""
    runs = input_runs(index * chunk_size, num_frames, shape.frames, num_output)
    return _video(UploadField.INPUT, VIDEO_HEADER_BYTES, runs, num_frames, shape)


def own_video(
    spec_ref: SpecRef, num_frames: int, size: tuple[int, int], *, any_size: bool, blob_bytes: int | None
) -> TensorPlan | None:
    """The chunk's own input video, trimmed or padded to `num_frames`.

    Args:
        spec_ref: the chunk's spec.
        num_frames: pixel frames of the chunk.
        size: height and width of the generation.
        any_size: the pipeline accepts any size and resizes it.
        blob_bytes: size of the blob.
    """
    found = spec_ref.blob_array("input_video", blob_bytes, itemsize=1)
    if found is None:
        return None
    dimensions, offset = found
    shape = VideoShape(*dimensions)
    if shape.channels != MODEL_CHANNELS:
        raise spec_ref.refuse(
            "input_video_shape", f"{counted(shape.channels, 'channel')}, the models take {MODEL_CHANNELS}"
        )
    if not any_size and (shape.height, shape.width) != size:
        raise spec_ref.refuse("input_video_shape", f"frames of {shape.width}x{shape.height}, {_wants(size)}")
    return _video(UploadField.BLOB, offset, fit_runs(num_frames, shape.frames), num_frames, shape)


def vace_arrays(spec_ref: SpecRef, num_frames: int, size: tuple[int, int], blob_bytes: int | None) -> list[TensorPlan]:
    """VACE frames and masks of a chunk; locked ones longer than the chunk are trimmed to it."""
    plans = []
    for name, spec, channels in (
        ("vace_frames", contract.VACE_FRAMES, (1, 3)),
        ("vace_masks", contract.VACE_MASKS, (1,)),
    ):
        found = spec_ref.blob_array(name, blob_bytes, spec.itemsize)
        if found is None:
            continue
        (batch, depth, num_given, height, width), offset = found
        if batch != 1:
            raise spec_ref.refuse(f"{name}_shape", f"a batch of {batch}, must be 1")
        if depth not in channels:
            raise spec_ref.refuse(
                f"{name}_shape", f"{counted(depth, 'channel')}, must be {' or '.join(map(str, channels))}"
            )
        if (height, width) != size:
            raise spec_ref.refuse(f"{name}_shape", f"frames of {width}x{height}, {_wants(size)}")
        frame_bytes = height * width * spec.itemsize
        num_kept = min(num_given, num_frames) if spec_ref.spec.vace_temporally_locked else num_given
        if num_kept == num_given:
            extents = [Extent(UploadField.BLOB, offset, depth * num_given * frame_bytes)]
        else:  # channels come before frames, so each channel is trimmed by itself
            starts = (offset + channel * num_given * frame_bytes for channel in range(depth))
            extents = [Extent(UploadField.BLOB, start, num_kept * frame_bytes) for start in starts]
        plans.append(TensorPlan(spec, (1, depth, num_kept, height, width), tuple(extents)))
    return plans


def image_plans(spec: ChunkSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[ImagePlan]:
    """First and last frame image and references of a chunk."""
    plans = []
    for tensor, name in (
        (contract.FIRST_FRAME_IMAGE, spec.first_frame_image),
        (contract.LAST_FRAME_IMAGE, spec.last_frame_image),
    ):
        if name is not None:
            plans.append(ImagePlan(tensor, (name,), shapes[name]))
    if spec.vace_ref_images:
        joined = sum(math.prod(shapes[name]) for name in spec.vace_ref_images)
        plans.append(ImagePlan(contract.VACE_REF_IMAGES, tuple(spec.vace_ref_images), (joined,)))
    return plans


def _video(
    upload: UploadField, offset: int, runs: Sequence[FrameRun], num_frames: int, shape: VideoShape
) -> TensorPlan:
    extents = (Extent(upload, offset + first * shape.frame_bytes, length * shape.frame_bytes) for first, length in runs)
    return TensorPlan(contract.INPUT_VIDEO, (num_frames, *shape[1:]), tuple(extents))


def _wants(size: tuple[int, int]) -> str:
    height, width = size
    return f"the generation has {width}x{height}"
