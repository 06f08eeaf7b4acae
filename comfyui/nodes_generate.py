"""The nodes Generate and Generate to Video."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import video_file, widgets
from .chunk_specs import Loras, Specs
from .client import PipelineRef, ServerClient, VideoShape
from .errors import FilmstripError
from .frames import Floats, Pixels, to_floats
from .generation import REFUSE, SCALE, GenerationInputs, generate, naming_result_on_error
from .host import (
    Display,
    OutputFile,
    Sound,
    arrays_of,
    as_video,
    check_interrupted,
    metadata,
    output_file,
    parts_of_video,
    sound_of,
    to_tensor,
)

MAX_FRAMES = 10_000
DEFAULT_NOISE_SCALE = 0.7
DEFAULT_FPS = 16.0
_SIDE = "64 to 2048, in steps of the pipeline's granularity. 0: the pipeline's own, else that of the input."


def _input_types(
    required: dict[str, widgets.Widget] | None = None, optional: dict[str, widgets.Widget] | None = None
) -> dict[str, Any]:
    return {
        "required": {
            "pipeline": widgets.socket("FILMSTRIP_PIPELINE", "The pipeline that generates the frames."),
            "prompt": widgets.text(f"What the video shows. {widgets.BLENDS} Frame processors ignore it.", prompts=True),
            "num_frames": widgets.integer(
                0,
                0,
                MAX_FRAMES,
                "Frames of the output. 0: as many as the images, else the control frames or masks, else 64.",
            ),
            "seed": (
                "INT",
                {
                    "default": 42,
                    "min": widgets.RANDOM_SEED,
                    "max": widgets.MAX_SEED,
                    "control_after_generate": True,
                    "tooltip": "-1: a random seed for each run, which the report contains. Not sent to pipelines that "
                    "do not use one.",
                },
            ),
            **(required or {}),
        },
        "optional": {
            "images": widgets.socket("IMAGE", "The input video, for video to video and for frame processors."),
            "video": widgets.socket("VIDEO", "The same as a VIDEO, such as from Load Video. Instead of images."),
            **(optional or {}),
            "chunk_specs": widgets.socket(
                "FILMSTRIP_CHUNK_SPECS", "From a Prompt Schedule or a Chunk Spec: what changes during the video."
            ),
            "loras": widgets.socket("FILMSTRIP_LORAS", "From a LoRA node."),
            "vace_frames": widgets.socket(
                "IMAGE", "Control frames for the whole video; split into chunks. One applies to all."
            ),
            "vace_masks": widgets.socket(
                "MASK",
                "White (above 0.5) is generated, the rest of the control frames is kept; split into chunks. One applies"
                " to all frames.",
            ),
            "vace_ref_images": widgets.socket("IMAGE", "Images that show what the object looks like."),
            "pre_processor": widgets.socket("FILMSTRIP_PIPELINE", "A frame processor for the input video."),
            "post_processor": widgets.socket("FILMSTRIP_PIPELINE", "A frame processor for the output."),
            "weighted_prompts": widgets.linked_text(
                f"Prompts to blend as a text from another node, instead of prompt. {widgets.WEIGHTED_PROMPTS}"
            ),
            "lora_scales": widgets.lora_scales(),
            "noise_scale": widgets.number(
                DEFAULT_NOISE_SCALE,
                0,
                1,
                0.01,
                "Video to video only: little noise keeps the input, much noise follows the prompt.",
                slider=True,
            ),
            "vace_use_input_video": widgets.choice(
                widgets.SWITCH, "On: the input video guides the new frames, instead of being changed into them."
            ),
            "width": widgets.integer(0, 0, 2048, _SIDE, step=16, advanced=True),
            "height": widgets.integer(0, 0, 2048, _SIDE, step=16, advanced=True),
            "vace_context_scale": widgets.number(
                1, 0, 2, 0.01, "How closely the video follows control frames.", slider=True, advanced=True
            ),
            "other_sizes": widgets.choice(
                [SCALE, REFUSE], "What happens to control frames, masks and key images of another size.", advanced=True
            ),
            "prompt_interpolation_method": widgets.choice(
                widgets.METHOD, "How prompts with weights are blended.", advanced=True
            ),
            "noise_controller": widgets.choice(widgets.SWITCH, "On: the input's motion sets the noise.", advanced=True),
            "manage_cache": widgets.boolean(
                True, "On: what the model remembers is dropped where parameters change, if it must be.", advanced=True
            ),
            "kv_cache_attention_bias": widgets.number(
                1, 0.01, 1, 0.01, "How much earlier frames count.", slider=True, advanced=True
            ),
            "denoising_steps": widgets.denoising_steps(),
            "wait_when_busy_s": widgets.number(
                300,
                0,
                86_400,
                1,
                "A server generates one video at a time. How long to wait for it, in seconds.",
                advanced=True,
            ),
        },
        "hidden": {"unique_id": "UNIQUE_ID"},
    }


class _Generator:
    """Base of both nodes."""

    CATEGORY = "Filmstrip"

    @classmethod
    def IS_CHANGED(cls, seed: int | None = None, **_: Any) -> float | str:
        """ComfyUI runs a node again if this differs from the last time; NaN always does."""
        return math.nan if seed == widgets.RANDOM_SEED else ""

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        prompt: str | None = None,
        weighted_prompts: str | None = None,
        denoising_steps: str | None = None,
        lora_scales: str | None = None,
    ) -> bool | str:
        return (
            widgets.validation_error(widgets.parse_prompt, prompt)
            or widgets.validation_error(widgets.parse_weighted_prompts, weighted_prompts)
            or widgets.validation_error(widgets.parse_denoising_steps, denoising_steps)
            or widgets.validation_error(widgets.parse_lora_scales, lora_scales)
            or True
        )


@dataclass(frozen=True)
class _Source:
    """The input video.

    Attributes:
        images: its frames, as they came.
        sound: its sound.
        fps: its frames per second; None if nothing says so.
    """

    images: Any
    sound: Sound | None = None
    fps: float | None = None


def _source(images: Any, video: Any) -> _Source:
    if video is None:
        return _Source(images)
    if images is not None:
        raise FilmstripError("images and video are both connected: use one of them")
    parts = parts_of_video(video)
    return _Source(parts.images, parts.sound, parts.fps)


def _generation_inputs(
    pipeline: PipelineRef,
    prompt: str,
    num_frames: int,
    seed: int,
    *,
    images: Any = None,
    chunk_specs: Specs = (),
    loras: Loras = (),
    pre_processor: PipelineRef | None = None,
    post_processor: PipelineRef | None = None,
    vace_frames: Any = None,
    vace_masks: Any = None,
    vace_ref_images: Any = None,
    weighted_prompts: str = "",
    prompt_interpolation_method: str = widgets.DEFAULT,
    width: int = 0,
    height: int = 0,
    other_sizes: str = SCALE,
    noise_scale: float = DEFAULT_NOISE_SCALE,
    noise_controller: str = widgets.DEFAULT,
    manage_cache: bool = True,
    kv_cache_attention_bias: float = 1,
    vace_context_scale: float = 1,
    vace_use_input_video: str = widgets.DEFAULT,
    denoising_steps: str = "",
    lora_scales: str = "",
    wait_when_busy_s: float = 300,
) -> GenerationInputs:
    for name, other in (("pre_processor", pre_processor), ("post_processor", post_processor)):
        if other is not None and other.server.url != pipeline.server.url:
            raise FilmstripError(
                f"{widgets.label(name)}: is on {other.server.url}, but the pipeline is on {pipeline.server.url}"
            )
    # Defaults are not sent: the server would list those that the pipeline does not use.
    fields = widgets.without_none(
        prompt=widgets.parse_weighted_prompts(weighted_prompts) or widgets.parse_prompt(prompt),
        seed=seed,
        width=width or None,
        height=height or None,
        noise_scale=None if noise_scale == DEFAULT_NOISE_SCALE else noise_scale,
        noise_controller=widgets.switch(noise_controller),
        manage_cache=None if manage_cache else False,
        kv_cache_attention_bias=None if kv_cache_attention_bias == 1 else kv_cache_attention_bias,
        prompt_interpolation_method=widgets.method(prompt_interpolation_method),
        vace_context_scale=None if vace_context_scale == 1 else vace_context_scale,
        vace_use_input_video=widgets.switch(vace_use_input_video),
        denoising_steps=widgets.parse_denoising_steps(denoising_steps) or None,
        lora_scales=widgets.parse_lora_scales(lora_scales) or None,
        pre_processor_id=pre_processor.id if pre_processor else None,
        post_processor_id=post_processor.id if post_processor else None,
    )
    arrays = arrays_of(
        {
            "images": images,
            "vace_frames": vace_frames,
            "vace_masks": vace_masks,
            "vace_ref_images": vace_ref_images,
        }
    )
    return GenerationInputs(
        pipeline,
        fields,
        num_frames,
        images=arrays.pop("images", None),
        references=arrays.pop("vace_ref_images", None),
        batches=arrays,
        specs=chunk_specs,
        loras=loras,
        other_sizes=other_sizes,
        wait_when_busy_s=wait_when_busy_s,
    )


class FilmstripGenerate(_Generator):
    """A video as images."""

    DESCRIPTION = (
        "Generates a video on the server, chunk by chunk, and outputs its frames. Stop cancels it on the server. "
        "For long videos, use Generate to Video: images are float32, 12 bytes per pixel."
    )
    RETURN_TYPES = ("IMAGE", "INT", "STRING")
    RETURN_NAMES = ("images", "frame_count", "report")
    OUTPUT_TOOLTIPS = (
        "The frames.",
        "Number of frames.",
        "JSON report: times, chunks and the request as it was sent.",
    )
    FUNCTION = "generate"
    SEARCH_ALIASES = ["text to video", "video to video", "longlive", "wan", "vace", "inpaint video", "t2v", "v2v"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        return widgets.labelled(_input_types())

    def generate(
        self,
        pipeline: PipelineRef,
        prompt: str,
        num_frames: int,
        seed: int,
        *,
        unique_id: str | None = None,
        images: Any = None,
        video: Any = None,
        **others: Any,
    ) -> tuple[Any, int, str]:
        """Generate, and download the frames.

        Raises:
            FilmstripError: it failed; the message says why.
        """
        display = Display(unique_id)
        with display.run():
            client = ServerClient(pipeline.server, check_interrupted)
            source = _source(images, video).images
            inputs = _generation_inputs(pipeline, prompt, num_frames, seed, images=source, **others)
            result = generate(inputs, client, display)
            display.text("downloading")
            with naming_result_on_error(result):
                frames, last = client.download(result.output_path, _into_floats)
            display.picture(last)
            display.text(result.summary)
        return to_tensor(frames), len(frames), result.report


class FilmstripGenerateVideo(_Generator):
    """A video as a file."""

    DESCRIPTION = (
        "Generates a video on the server, chunk by chunk, and writes it as MP4 to ComfyUI's output "
        "directory during the download, with only one frame in memory."
    )
    RETURN_TYPES = ("VIDEO", "STRING", "INT", "STRING")
    RETURN_NAMES = ("video", "path", "frame_count", "report")
    OUTPUT_TOOLTIPS = ("The video.", "Path of the file.", "Number of frames.", "JSON report.")
    FUNCTION = "generate"
    OUTPUT_NODE = True
    SEARCH_ALIASES = [
        "text to video",
        "video to video",
        "longlive",
        "wan",
        "vace",
        "inpaint video",
        "save video",
        "mp4",
    ]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        types = _input_types(
            {
                "fps": widgets.number(0, 0, 120, 0.01, f"0: those of the input video, else {DEFAULT_FPS:g}."),
                "filename_prefix": widgets.text(
                    "Start of the file name in ComfyUI's output directory. %date:yyyy-MM-dd% becomes the date.",
                    default="video/Filmstrip",
                    lines=False,
                ),
            },
            {
                "audio": widgets.socket(
                    "AUDIO", "Sound for the file. Without it, the sound of the input video is kept."
                ),
            },
        )
        types["hidden"] |= {"graph": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
        return widgets.labelled(types)

    def generate(
        self,
        pipeline: PipelineRef,
        prompt: str,
        num_frames: int,
        seed: int,
        *,
        fps: float,
        filename_prefix: str,
        images: Any = None,
        video: Any = None,
        audio: Any = None,
        unique_id: str | None = None,
        graph: Any = None,
        extra_pnginfo: Any = None,
        **others: Any,
    ) -> dict[str, Any]:
        """Generate, and write the file.

        Raises:
            FilmstripError: it failed; the message says why.
        """
        display = Display(unique_id)
        with display.run():
            client = ServerClient(pipeline.server, check_interrupted)
            video_file.check(output_file(filename_prefix, 0, 0, ".mp4").path)
            source = _source(images, video)
            inputs = _generation_inputs(pipeline, prompt, num_frames, seed, images=source.images, **others)
            result = generate(inputs, client, display)
            display.text("downloading and encoding")
            rate = fps or source.fps or DEFAULT_FPS
            sound = sound_of(audio) or source.sound
            remembered = metadata(graph, extra_pnginfo, (pipeline.server.token,))

            def encode(shape: VideoShape, frames: Iterator[Pixels]) -> tuple[OutputFile, int]:
                file = output_file(filename_prefix, shape[1], shape[2], ".mp4")
                return file, video_file.write(file.path, frames, rate, sound=sound, metadata=remembered)

            with naming_result_on_error(result):
                file, count = client.download(result.output_path, encode)
            display.text(f"{result.summary}: {file.filename}")
        return {"ui": file.shown(), "result": (as_video(file.path), file.path, count, result.report)}


def _into_floats(shape: VideoShape, frames: Iterator[Pixels]) -> tuple[Floats, Pixels]:
    """All frames as an IMAGE, and the last one in uint8."""
    images = np.empty(shape, np.float32)
    last = np.empty(shape[1:], np.uint8)
    for index, frame in enumerate(frames):
        to_floats(frame, out=images[index])
        last = frame
    return images, last


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "FilmstripGenerate": FilmstripGenerate,
    "FilmstripGenerateVideo": FilmstripGenerateVideo,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FilmstripGenerate": "Filmstrip Generate",
    "FilmstripGenerateVideo": "Filmstrip Generate to Video",
}
