"""The shipped settings made smaller still, so that all stages run in seconds."""

from dataclasses import replace
from pathlib import Path

from research.generator import CLIPS_FOLDER
from research.settings import Settings, read_settings

_LORA_CLIPS = ("lora-clips", "lora-clips-filled")


def small() -> Settings:
    """The shipped settings with a network of few parameters and few clips."""
    settings = read_settings()
    few = replace(settings.clips, plain=2, plain_anywhere=2, switched=6, switched_anywhere=6, recoloured_pairs=1)
    values = {
        **settings.checkpoint_values,
        "dim": 48,
        "ffn_dim": 64,
        "num_heads": 2,
        "num_layers": 3,
        "freq_dim": 32,
        "text_dim": 16,
        "in_dim": 4,
        "out_dim": 4,
        "vae": {"type": "tae", "base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "activation": "silu"},
    }
    encoder = {**settings.text_encoder_values, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return replace(
        settings,
        checkpoint_values=values,
        text_encoder_values=encoder,
        autoencoder=replace(settings.autoencoder, batch=1, latent_frames=3),
        vace_values=settings.vace_values | {"vace_layers": [0, 2], "vace_in_dim": 72},
        generator=replace(settings.generator, batch=2),
        vace=replace(settings.vace, batch=2, clips=10),
        lora=replace(settings.lora, batch=2, rank=4),
        clips=few,
        lora_clips=few,
    )


def linked(folder: Path, clips: Path) -> Path:
    """A folder with the autoencoder and the clips of another; those of the LoRA are encoded once for all."""
    folder.mkdir()
    for name in _LORA_CLIPS:
        (clips / name).mkdir(exist_ok=True)
    for name in (CLIPS_FOLDER, *_LORA_CLIPS, "autoencoder.pt", "latents.json"):
        (folder / name).symlink_to(clips / name)
    return folder
