"""Measures what noise scales and LoRA scales do, over several scenes, and draws the curves as SVG."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import click

from filmstrip.client import ClientError
from filmstrip.console import make_client
from filmstrip.errors import FilmstripError
from research.condition_score import ServedCases
from research.evaluation import lora_ramp, video_to_video
from research.served import TIMEOUT_S, UnfitVideo
from tests.support.small_export import ID as PIPELINE

Curve = Mapping[float, float]

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 44, 52
_LINES = ("#0969da", "#bc4c00")
_STYLE = """
    .page { fill: #ffffff; stroke: #d0d7de; }
    .grid { stroke: #d8dee4; }
    text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
    .head { font-weight: 600; font-size: 15px; }
    .middle { text-anchor: middle; }
    .end { text-anchor: end; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; stroke: #30363d; }
      .grid { stroke: #30363d; }
      text { fill: #e6edf3; }
    }
  """


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--server", default="http://127.0.0.1:8000", show_default=True, help="URL of a running server.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="out/curves", show_default=True)
@click.option("--scenes", type=click.IntRange(1), default=8, show_default=True, help="That each point is the mean of.")
def main(server: str, out: Path, scenes: int) -> None:
    """Measure what noise scales and LoRA scales do, and draw the curves: noise_scale.svg, lora_scale.svg."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with make_client(server, timeout_s=TIMEOUT_S) as client:
            fulfil = ServedCases(client, PIPELINE)
            noise, lora = video_to_video(fulfil, scenes).curves, lora_ramp(fulfil, scenes).curves
    except (FilmstripError, ClientError, UnfitVideo) as error:
        raise click.ClickException(str(error)) from error
    charts = (
        ("noise_scale", "PSNR against the source, dB", noise, (0, 5, 10, 15, 20, 25, 30, 35)),
        ("lora_scale", "share of the object that is filled", lora, (0.0, 0.25, 0.5, 0.75, 1.0)),
    )
    for name, title, curves, marks in charts:
        for label, curve in curves.items():
            click.echo(f"{name}, {label}: " + ", ".join(f"{at:g}: {value:.2f}" for at, value in curve.items()))
        path = out / f"{name}.svg"
        path.write_text(chart(f"{title}, by {name}", curves, marks))
        click.echo(path)


def chart(title: str, curves: Mapping[str, Curve], marks: Sequence[float]) -> str:
    """A line chart as SVG.

    Args:
        title: above it.
        curves: by label, all over the same values, which the bottom axis is marked with.
        marks: of the upright axis, the lowest and the highest of which are its ends; what lies beyond is cut off.
    """
    values = list(next(iter(curves.values())))
    low, high = marks[0], marks[-1]
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(value: float) -> float:
        return round(_LEFT + width * (value - values[0]) / (values[-1] - values[0]), 1)

    def down(value: float) -> float:
        return round(_TOP + height * (high - min(max(value, low), high)) / (high - low), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(title)}</title>',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="10"/>',
        f'<text class="head" x="{_LEFT}" y="26">{escape(title)}</text>',
    ]
    for mark in marks:
        parts.append(f'<path class="grid" d="M{_LEFT} {down(mark)}h{width}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 8}" y="{down(mark) + 4}">{mark:g}</text>')
    foot = _TOP + height + 20
    parts += [f'<text class="middle" x="{across(value)}" y="{foot}">{value:g}</text>' for value in values]
    for number, (label, curve) in enumerate(curves.items()):
        colour = _LINES[number % len(_LINES)]
        points = [(across(at), down(value)) for at, value in curve.items()]
        line = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in points]
        left = _LEFT + number * width // 2
        parts.append(f'<path d="M{left} {_HEIGHT - 14}h22" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 30}" y="{_HEIGHT - 10}">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
