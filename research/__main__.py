"""`python -m research`: from nothing to the weights of the small model, and what they are worth."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from export.errors import ExportError
from research import generator as generator_stage
from research import self_context
from research.autoencoder import DECODER_NAME, scaled, train_autoencoder, train_decoder, trained_autoencoder
from research.autoencoder import FILE_NAME as AUTOENCODER
from research.checkpoint_folder import trained_networks, write_checkpoint
from research.checkpoints import Budget, Training
from research.condition_score import score_conditions
from research.encoded import encode_clips
from research.generator import CLIPS_FOLDER, train_generator
from research.lora import FILE_NAME as LORA
from research.lora import train_lora
from research.measures import Plan, measure
from research.restore import restore
from research.samples import Sampler, write_sheet
from research.score import score
from research.settings import Settings, read_settings
from research.threads import FastestThreads, keep_freed_memory
from research.vace import FILE_NAME as VACE
from research.vace import train_vace

_QUICK = Plan(num_prompts=16, num_chunks=6, num_switches=8, num_long=0)
_WHOLE = Plan()
_STATES = (self_context.FILE_NAME, generator_stage.FILE_NAME)


@dataclass(frozen=True)
class _Place:
    """Options of all commands."""

    folder: Path
    after_step: Callable[[], None] | None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/training"),
    show_default=True,
    help="Of the training's states, clips, logs and samples.",
)
@click.option("--threads", type=click.IntRange(1), help="Of PyTorch.  [default: tried out now and then]")
@click.pass_context
def main(context: click.Context, folder: Path, threads: int | None) -> None:
    """Train the small model: autoencoder, clips, generator, self-context, vace, lora, then write.

    A stage that was stopped goes on where it was when the command is given again; one whose budget is used up does
    nothing, unless it is given more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    context.obj = _Place(folder, FastestThreads() if threads is None else None)


def _budget(command: Callable[..., None]) -> Callable[..., None]:
    steps = click.option("--steps", type=click.IntRange(1), help="So many steps instead.")
    return steps(click.option("--minutes", type=click.FloatRange(0), help="In all, those before included.")(command))


def _budget_of(minutes: float | None, steps: int | None) -> Budget:
    if (minutes is None) == (steps is None):
        raise click.UsageError("give one of --minutes and --steps")
    return Budget(minutes, steps)


@main.command()
@_budget
@click.pass_obj
def autoencoder(place: _Place, minutes: float | None, steps: int | None) -> None:
    """Train the autoencoder."""
    budget = _budget_of(minutes, steps)
    train_autoencoder(place.folder, read_settings(), budget, after_step=place.after_step)


@main.command()
@click.pass_obj
def clips(place: _Place) -> None:
    """Draw the generator's clips and encode them."""
    settings = scaled(read_settings(), place.folder)
    encoder, _ = trained_autoencoder(place.folder, settings)
    encode_clips(place.folder / CLIPS_FOLDER, encoder, settings.clips, settings.checkpoint.text_len)


@main.command()
@_budget
@click.pass_obj
def generator(place: _Place, minutes: float | None, steps: int | None) -> None:
    """Train the transformer and the text encoder."""
    settings = scaled(read_settings(), place.folder)
    show = _shower(place.folder, settings, generator_stage.FILE_NAME)
    train_generator(place.folder, settings, _budget_of(minutes, steps), show=show, after_step=place.after_step)


@main.command(name="self-context")
@_budget
@click.pass_obj
def self_context_command(place: _Place, minutes: float | None, steps: int | None) -> None:
    """Train them on, on what they make themselves."""
    settings = scaled(read_settings(), place.folder)
    show = _shower(place.folder, settings, self_context.FILE_NAME)
    budget = _budget_of(minutes, steps)
    self_context.train_on_own(place.folder, settings, budget, show=show, after_step=place.after_step)


@main.command()
@_budget
@click.pass_obj
def vace(place: _Place, minutes: float | None, steps: int | None) -> None:
    """Train the VACE branch of the finished transformer."""
    settings = scaled(read_settings(), place.folder)
    base = _last_state(place.folder)
    train_vace(place.folder, settings, _budget_of(minutes, steps), base_state=base, after_step=place.after_step)


@main.command()
@_budget
@click.pass_obj
def lora(place: _Place, minutes: float | None, steps: int | None) -> None:
    """Train the LoRA on the finished transformer."""
    settings = scaled(read_settings(), place.folder)
    base = _last_state(place.folder)
    train_lora(place.folder, settings, _budget_of(minutes, steps), base_state=base, after_step=place.after_step)


@main.command()
@_budget
@click.pass_obj
def decoder(place: _Place, minutes: float | None, steps: int | None) -> None:
    """Train the autoencoder's decoder on, at any time: the latents stay what they are."""
    train_decoder(place.folder, read_settings(), _budget_of(minutes, steps), after_step=place.after_step)


@main.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("checkpoints/longlive-small"))
@click.option("--state", type=click.Choice(_STATES), help="Of which stage.  [default: the last that there is]")
@click.pass_obj
def write(place: _Place, out: Path, state: str | None) -> None:
    """Write the checkpoint that `python -m export longlive` takes."""
    size = write_checkpoint(out, place.folder, read_settings(), state or _last_state(place.folder))
    click.echo(f"{out}: {size / 1e6:.1f} MB")


@main.command(name="restore")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("checkpoints/longlive-small"),
    show_default=True,
)
@click.pass_obj
def restore_command(place: _Place, checkpoint: Path) -> None:
    """Begin from a checkpoint's weights instead of from nothing."""
    try:
        paths = restore(place.folder, checkpoint, read_settings())
    except (FileExistsError, ExportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n".join(map(str, paths)))


@main.command()
@click.option("--state", type=click.Choice(_STATES), help="Of which stage.  [default: the last that there is]")
@click.pass_obj
def measured(place: _Place, state: str | None) -> None:
    """Score the weights as `score` does, without a server and without an export."""
    networks = trained_networks(place.folder, read_settings(), state or _last_state(place.folder))
    for row in measure(Sampler(networks), _WHOLE):
        click.echo(json.dumps(asdict(row)))


@main.command()
@click.pass_obj
def status(place: _Place) -> None:
    """Say how far each stage is."""
    for name in (AUTOENCODER, *reversed(_STATES), VACE, LORA, DECODER_NAME):
        log = (place.folder / name).with_suffix(".jsonl")
        click.echo(f"{name}: {log.read_text().splitlines()[-1] if log.exists() else 'not begun'}")


main.add_command(score)
main.add_command(score_conditions)


def _last_state(folder: Path) -> str:
    return next((name for name in _STATES if (folder / name).exists()), _STATES[-1])


def _shower(folder: Path, settings: Settings, state: str) -> Callable[[Training], None]:
    """Scores a few clips of the averaged weights, logs the shares, and writes a contact sheet."""

    def show(training: Training) -> None:
        sampler = Sampler(trained_networks(folder, settings, state))
        for row in measure(sampler, _QUICK):
            training.log(what=row.what, **{name: round(share, 3) for name, share in row.shares.items()})
        write_sheet(folder / "samples" / f"{Path(state).stem}-{training.step:06}.png", sampler)

    return show


if __name__ == "__main__":
    main(prog_name="python -m research")
