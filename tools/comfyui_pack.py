"""Writes the files of the ComfyUI pack that follow from its nodes: templates, their API copies, English names, help.

It also copies what the pack shares with the client.

python -m tools.comfyui_pack writes them; with --check it only says which are out of date. --inputs draws the inputs of
the node Example again.
"""

import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import comfyui
from comfyui import widgets
from comfyui.settings import DEFAULT_URL

PACK = Path(comfyui.__file__).parent
TEMPLATES = PACK / "example_workflows"
API_COPIES = PACK / "api_workflows"
SHARED = PACK.parent / "filmstrip" / "foreign_answers.py"
HELP = PACK / "web" / "docs"
NAMES = PACK / "locales" / "en" / "nodeDefs.json"
_NAMESPACE = uuid.UUID("5b0b64f5-2a84-4b2c-9b5c-1d3f4c1d8e63")
_WIDGET_KINDS = ("INT", "FLOAT", "STRING", "BOOLEAN")

# -- Templates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """The output of another node."""

    node: str
    output: str


@dataclass(frozen=True)
class Node:
    """One node of a template, by the names of its inputs.

    Attributes:
        kind: id of the node.
        place: column and row on the canvas.
        inputs: values of widgets that differ from their default, and links.
    """

    kind: str
    place: tuple[int, int]
    inputs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Template:
    """A workflow and the note beside it."""

    title: str
    note: str
    nodes: dict[str, Node]


_RED_LEFT = "a red circle moving left on a blue background"
_COLUMNS = (-40, 330, 700, 1070)
_WIDTH, _GAP = 320, 80
_HEIGHTS = MappingProxyType(
    {
        "FilmstripServer": 90,
        "FilmstripPipeline": 190,
        "FilmstripExample": 100,
        "FilmstripPromptSchedule": 220,
        "FilmstripChunkSpec": 310,
        "FilmstripLora": 120,
        "FilmstripGenerateVideo": 500,
    }
)
_SERVER = Node("FilmstripServer", (0, 0), {"address": DEFAULT_URL})


def _pipeline(name: str, row: int = 1) -> Node:
    return Node("FilmstripPipeline", (0, row), {"server": Link("server", "server"), "pipeline_id": name})


def _generate(column: int = 1, **inputs: Any) -> Node:
    return Node("FilmstripGenerateVideo", (column, 0), {"pipeline": Link("pipeline", "pipeline"), "seed": 1, **inputs})


def _template(title: str, note: str, **nodes: Node) -> Template:
    return Template(title, note, {"server": _SERVER, "pipeline": _pipeline("longlive-small"), **nodes})


_FOR_LONGLIVE = (
    "For `longlive`, choose it in the Pipeline node (press R if it is not in the list) and write a prompt of your own."
    " The size is the pipeline's. `longlive-small` only knows sentences such as this one."
)

TEMPLATES_BY_NAME = MappingProxyType(
    {
        "text_to_video": _template(
            "Text to video",
            "A video from a sentence.",
            generate=_generate(
                prompt="a yellow circle moving left on a green background",
                num_frames=69,
                filename_prefix="video/text_to_video",
            ),
        ),
        "prompt_schedule": _template(
            "Prompt schedule",
            "Prompts that change during the video. The numbers are chunks here; choose frames or seconds in *unit*.",
            schedule=Node(
                "FilmstripPromptSchedule",
                (1, 0),
                {
                    "schedule": f"0: {_RED_LEFT}\n3: a yellow circle moving left on a blue background\n"
                    "6: a white square moving down on a green background"
                },
            ),
            generate=_generate(
                2,
                prompt=_RED_LEFT,
                num_frames=105,
                chunk_specs=Link("schedule", "chunk_specs"),
                filename_prefix="video/prompt_schedule",
            ),
        ),
        "transition": _template(
            "Transition",
            "From one prompt to another, little by little. *Move to prompts* and the transition's length are among the"
            " advanced inputs of the Chunk Spec, which says in which chunk the transition starts.",
            change=Node(
                "FilmstripChunkSpec",
                (1, 0),
                {
                    "chunk": 2,
                    "transition_target_prompts": "a yellow square moving right on a blue background",
                    "transition_num_steps": 5,
                },
            ),
            generate=_generate(
                2,
                prompt="a red square moving right on a blue background",
                num_frames=105,
                chunk_specs=Link("change", "chunk_specs"),
                filename_prefix="video/transition",
            ),
        ),
        "video_to_video": _template(
            "Video to video",
            "A clip in the words of a prompt, with its sound and its frame rate. Put *Load Video* in place of Filmstrip"
            " Example for your own. Less *noise* keeps more of the clip.",
            example=Node("FilmstripExample", (1, 0), {"example": "clip with sound"}),
            generate=_generate(
                2,
                prompt="a yellow circle moving left on a green background",
                video=Link("example", "video"),
                filename_prefix="video/video_to_video",
            ),
        ),
        "control_frames": _template(
            "Control frames",
            "The video follows outlines (or depth, or poses, as the pipeline was trained). Control frames of another"
            " size are scaled and cropped.",
            example=Node("FilmstripExample", (1, 0), {"example": "outlines"}),
            generate=_generate(
                2,
                prompt="a yellow circle moving right on a purple background",
                vace_frames=Link("example", "images"),
                filename_prefix="video/control_frames",
            ),
        ),
        "inpainting": _template(
            "Inpainting",
            "What is white in the mask is generated, the rest of the clip is kept. Put *Load Video* (with Get Video"
            " Components) and *Load Image* (its mask is what you paint in the Mask Editor) in place of the examples.",
            clip=Node("FilmstripExample", (1, 0), {"example": "clip with sound"}),
            mask=Node("FilmstripExample", (1, 1), {"example": "painted mask"}),
            generate=_generate(
                2,
                prompt="a yellow square moving left on a blue background",
                vace_frames=Link("clip", "images"),
                vace_masks=Link("mask", "masks"),
                filename_prefix="video/inpainting",
            ),
        ),
        "reference_image": _template(
            "Reference image",
            "An image shows what the object looks like; the prompt says what happens to it.",
            example=Node("FilmstripExample", (1, 0), {"example": "reference"}),
            generate=_generate(
                2,
                prompt="a thing moving left on a blue background",
                num_frames=45,
                vace_ref_images=Link("example", "images"),
                filename_prefix="video/reference_image",
            ),
        ),
        "first_and_last_frame": _template(
            "First and last frame",
            "The first chunk starts with one image, the last chunk ends with another. Images of another size are scaled"
            " and cropped.",
            first=Node("FilmstripExample", (1, 0), {"example": "first frame"}),
            last=Node("FilmstripExample", (1, 1), {"example": "last frame"}),
            start=Node("FilmstripChunkSpec", (2, 0), {"chunk": 0, "first_frame_image": Link("first", "images")}),
            end=Node(
                "FilmstripChunkSpec",
                (2, 1),
                {
                    "chunk": 2,
                    "chunk_specs": Link("start", "chunk_specs"),
                    "last_frame_image": Link("last", "images"),
                },
            ),
            generate=_generate(
                3,
                prompt="a green square moving down on a white background",
                num_frames=33,
                chunk_specs=Link("end", "chunk_specs"),
                filename_prefix="video/first_and_last_frame",
            ),
        ),
        "lora_ramp": _template(
            "LoRA ramp",
            "A LoRA that fades in. *ramp* is a list of chunk: factor; the strength grows evenly in between.",
            lora=Node("FilmstripLora", (1, 0), {"lora": "outlines", "strength": 1.0, "ramp": "0: 0, 4: 1"}),
            generate=_generate(
                2,
                prompt="a white square moving left on a purple background",
                num_frames=69,
                loras=Link("lora", "loras"),
                filename_prefix="video/lora_ramp",
            ),
        ),
        "processor_chain": Template(
            "Processor chain",
            "`gray` prepares the clip, `longlive-small` is guided by it, `scribble` draws the result's outlines."
            " Processors work with any size and can also be used alone.",
            {
                "server": _SERVER,
                "pipeline": _pipeline("longlive-small"),
                "gray": _pipeline("gray", 2),
                "scribble": _pipeline("scribble", 3),
                "example": Node("FilmstripExample", (1, 0), {"example": "clip with sound"}),
                "generate": _generate(
                    2,
                    prompt="an orange circle moving left on a blue background",
                    video=Link("example", "video"),
                    pre_processor=Link("gray", "pipeline"),
                    post_processor=Link("scribble", "pipeline"),
                    vace_use_input_video="on",
                    filename_prefix="video/processor_chain",
                ),
            },
        ),
    }
)


def _inputs_of(kind: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    types = comfyui.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
    return {**types["required"], **types.get("optional", {})}


def _is_widget(kind: Any, options: dict[str, Any]) -> bool:
    return (isinstance(kind, list) or kind in _WIDGET_KINDS) and not options.get("forceInput")


def _default(kind: Any, options: dict[str, Any]) -> Any:
    return options.get("default", kind[0] if isinstance(kind, list) else None)


def _outputs_of(kind: str) -> list[tuple[str, str]]:
    node: Any = comfyui.NODE_CLASS_MAPPINGS[kind]
    return list(zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True))


def api_format(template: Template) -> dict[str, Any]:
    """The workflow as ComfyUI's /prompt takes it."""
    numbers = {name: str(number) for number, name in enumerate(template.nodes, 1)}
    graph = {}
    for name, node in template.nodes.items():
        inputs = {}
        for key, (kind, options) in _inputs_of(node.kind).items():
            value = node.inputs.get(key)
            if isinstance(value, Link):
                slot = [output for output, _ in _outputs_of(template.nodes[value.node].kind)].index(value.output)
                inputs[key] = [numbers[value.node], slot]
            elif _is_widget(kind, options):
                inputs[key] = _default(kind, options) if value is None else value
        title = comfyui.NODE_DISPLAY_NAME_MAPPINGS[node.kind]
        graph[numbers[name]] = {"class_type": node.kind, "inputs": inputs, "_meta": {"title": title}}
    return graph


def _height(node: Node) -> int:
    # The page opens the advanced inputs of a node in which one of them has another value than its default.
    opened = "transition_target_prompts" in node.inputs
    return _HEIGHTS[node.kind] + 340 * opened


def _top(template: Template, node: Node) -> int:
    column, row = node.place
    above = (other for other in template.nodes.values() if other.place[0] == column and other.place[1] < row)
    return sum(_height(other) + _GAP for other in above)


def ui_format(name: str, template: Template) -> dict[str, Any]:
    """The workflow as ComfyUI's page saves it, with the note."""
    numbers = {key: number for number, key in enumerate(template.nodes, 1)}
    links: list[list[Any]] = []
    nodes = []
    for key, node in template.nodes.items():
        slots: list[dict[str, Any]] = []
        values: list[Any] = []
        inputs = _inputs_of(node.kind)
        order = sorted(inputs, key=lambda each: _is_widget(*inputs[each]))  # sockets first, as the page has them
        for each in order:
            kind, options = inputs[each]
            slot: dict[str, Any] = {"name": each, "type": "COMBO" if isinstance(kind, list) else kind, "link": None}
            if _is_widget(kind, options):
                slot["widget"] = {"name": each}
                values.append(node.inputs.get(each, _default(kind, options)))
                if options.get("control_after_generate"):
                    values.append("fixed")
            value = node.inputs.get(each)
            if isinstance(value, Link):
                outputs = [output for output, _ in _outputs_of(template.nodes[value.node].kind)]
                links.append(
                    [len(links) + 1, numbers[value.node], outputs.index(value.output), numbers[key], len(slots), kind]
                )
                slot["link"] = len(links)
            slots.append(slot)
        nodes.append(
            {
                "id": numbers[key],
                "type": node.kind,
                "pos": [_COLUMNS[node.place[0]], _top(template, node)],
                "size": [_WIDTH, _height(node)],
                "flags": {},
                "order": numbers[key] - 1,
                "mode": 0,
                "inputs": slots,
                "outputs": [{"name": output, "type": kind, "links": []} for output, kind in _outputs_of(node.kind)],
                "properties": {"cnr_id": "comfyui-filmstrip", "Node name for S&R": node.kind},
                "widgets_values": values,
            }
        )
    for link, source, slot_number, *_ in links:
        nodes[source - 1]["outputs"][slot_number]["links"].append(link)
    note = f"## {template.title}\n\n{template.note}\n\n{_FOR_LONGLIVE}"
    nodes.append(
        {
            "id": len(nodes) + 1,
            "type": "MarkdownNote",
            "pos": [_COLUMNS[0], -260],
            "size": [690, 200],
            "flags": {},
            "order": len(nodes),
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": template.title,
            "properties": {},
            "widgets_values": [note],
            "color": "#432",
            "bgcolor": "#653",
        }
    )
    return {
        "id": str(uuid.uuid5(_NAMESPACE, name)),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


# -- Names ----------------------------------------------------------------------------------------------------------


def names() -> dict[str, Any]:
    """What the page calls each node, input and output, and their tooltips, as a locale file has them."""
    definitions = {}
    for kind, title in comfyui.NODE_DISPLAY_NAME_MAPPINGS.items():
        node: Any = comfyui.NODE_CLASS_MAPPINGS[kind]
        inputs = {
            key: {"name": widgets.label(key), "tooltip": options["tooltip"]}
            for key, (_, options) in _inputs_of(kind).items()
        }
        outputs = {
            str(number): {"name": widgets.label(name), "tooltip": tooltip}
            for number, (name, tooltip) in enumerate(zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True))
        }
        definitions[kind] = {
            "display_name": title,
            "description": node.DESCRIPTION,
            "inputs": inputs,
            "outputs": outputs,
        }
    return definitions


_SERVER_HELP = (
    "Save the address and the API key in ComfyUI's settings, under Filmstrip: then the key is in no workflow and in no"
    " image. A key is only sent to the address that it was saved for."
)
_GENERATE_HELP = """While it runs, the node shows the newest frame, the chunk, the time elapsed and the time left. Stop
ends the generation on the server at once.

The server keeps a video for an hour by default. If only the file name, the frames per second or the longest wait
change, or if Stop came during the download, the same video is downloaded again instead of being made again. If the
connection breaks, the node takes it up again."""
_HELP = MappingProxyType(
    {
        "FilmstripServer": _SERVER_HELP,
        "FilmstripPipeline": "The node shows what the pipeline can do. *refresh* asks the server again.",
        "FilmstripPromptSchedule": "A prompt past the end of the video is reported as a warning and not used.",
        "FilmstripChunkSpec": "A chunk is what the model makes in one go, 12 frames for example. -1, *default* and "
        "empty texts mean: as in the rest of the video.",
        "FilmstripLora": "Chain several nodes to use several LoRAs.",
        "FilmstripGenerate": _GENERATE_HELP,
        "FilmstripGenerateVideo": _GENERATE_HELP,
        "FilmstripExample": "The templates use it, so that they run without files of yours.",
    }
)


def help_page(kind: str) -> str:
    """The page that ComfyUI shows as the help of a node, in Markdown."""
    node = names()[kind]
    lines = [f"# {node['display_name']}", "", node["description"], "", *_HELP[kind].split("\n"), ""]
    for title in ("inputs", "outputs"):
        lines += [f"## {title.capitalize()}", "", "| name | meaning |", "|---|---|"]
        lines += [f"| {each['name']} | {each['tooltip']} |" for each in node[title].values()]
        lines.append("")
    return "\n".join(lines)


# -- Files ----------------------------------------------------------------------------------------------------------


def files() -> Iterator[tuple[Path, str]]:
    """Each file and what belongs into it."""
    for name, template in TEMPLATES_BY_NAME.items():
        yield TEMPLATES / f"{name}.json", _json(ui_format(name, template))
        yield API_COPIES / f"{name}.json", _json(api_format(template))
    yield NAMES, _json(names())
    yield PACK / SHARED.name, SHARED.read_text()  # the folder goes alone
    for kind in comfyui.NODE_CLASS_MAPPINGS:
        yield HELP / f"{kind}.md", help_page(kind)


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def outdated() -> list[Path]:
    """The files that do not have what belongs into them."""
    return [path for path, text in files() if not path.is_file() or path.read_text() != text]


_BLUE, _WHITE, _BLACK = (20, 90, 225), (245, 245, 245), (20, 20, 20)
_YELLOW, _GREEN = (255, 230, 50), (35, 160, 60)
_FRAMES, _FPS, _SIDE, _RADIUS = 36, 12, 64, 12
_RATE, _PITCH_HZ = 44_100, 330.0


def draw_icon(path: Path) -> None:
    """Draw the icon of the registry: a strip of film."""
    side, holes = 400, range(36, 400, 82)
    picture = Image.new("RGB", (side, side), (24, 26, 32))
    draw = ImageDraw.Draw(picture)
    for left in (24, 336):
        for top in holes:
            draw.rounded_rectangle((left, top, left + 40, top + 40), 8, fill=_WHITE)
    for number, colour in enumerate((_YELLOW, _GREEN, _BLUE)):
        top = 28 + 118 * number
        draw.rounded_rectangle((92, top, 308, top + 106), 14, fill=colour)
    picture.save(path, optimize=True)


def draw_inputs(folder: Path) -> None:
    """Draw the inputs of the node Example."""
    y, x = np.mgrid[:_SIDE, :_SIDE]
    clip = np.empty((_FRAMES, _SIDE, _SIDE, 3), np.uint8)
    outlines = np.empty_like(clip)
    half = _SIDE // 2
    for number in range(_FRAMES):
        left = ((x - half + number + half) % _SIDE - half) ** 2 + (y - half) ** 2
        clip[number] = _BLUE
        clip[number][left < _RADIUS**2] = _WHITE
        right = np.sqrt(((x - 10 - number + half) % _SIDE - half) ** 2 + (y - 18) ** 2)
        outlines[number] = _BLACK
        outlines[number][(right < _RADIUS) & (right > _RADIUS - 3)] = _WHITE
    _write_clip(folder / "clip.mp4", clip, with_sound=True)
    _write_clip(folder / "outlines.mp4", outlines, with_sound=False)
    mask = np.zeros((_SIDE, _SIDE), np.uint8)
    mask[14:50] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    _picture(folder / "reference.png", _WHITE, (np.abs(2 * (x - half)) < y - 20) & (y > 20) & (y < 44), _YELLOW)
    _picture(folder / "first_frame.png", _WHITE, (np.abs(x - 47) < _RADIUS) & (np.abs(y - 14) < _RADIUS), _GREEN)
    _picture(folder / "last_frame.png", _WHITE, (np.abs(x - 47) < _RADIUS) & (np.abs(y - 46) < _RADIUS), _GREEN)


def _picture(path: Path, ground: Sequence[int], inside: NDArray[np.bool_], colour: Sequence[int]) -> None:
    pixels = np.empty((_SIDE, _SIDE, 3), np.uint8)
    pixels[:] = ground
    pixels[inside] = colour
    Image.fromarray(pixels).save(path)


def _write_clip(path: Path, frames: NDArray[np.uint8], *, with_sound: bool) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_FPS, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = _SIDE, _SIDE, "yuv420p"
        sound = container.add_stream("aac", rate=_RATE, layout="mono") if with_sound else None
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
        if sound is not None:
            times = np.arange(_RATE * _FRAMES // _FPS) / _RATE
            tone = (0.2 * np.sin(2 * np.pi * _PITCH_HZ * times) * np.exp(-3 * (times % 0.5))).astype(np.float32)
            for start in range(0, len(tone), 1024):
                piece = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = _RATE, start, Fraction(1, _RATE)
                container.mux(sound.encode(piece))
            container.mux(sound.encode(None))


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a file is out of date.")
@click.option("--inputs", is_flag=True, help="Draw the inputs of the node Example, and the icon.")
def main(*, check: bool, inputs: bool) -> None:
    """Write or check the files."""
    if inputs:
        (PACK / "example_inputs").mkdir(exist_ok=True)
        draw_inputs(PACK / "example_inputs")
        draw_icon(PACK / "icon.png")
    stale = outdated()
    for path in stale:
        click.echo(f"{'out of date' if check else 'written'}: {path.relative_to(PACK.parent)}")
    if check:
        sys.exit(bool(stale))
    for path, text in files():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
