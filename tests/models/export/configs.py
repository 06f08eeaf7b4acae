"""Configurations for the tests of the export."""

from typing import Any

from export.config import CheckpointConfig, TextEncoderConfig, parse_config, parse_text_encoder_config

STEPS = {"text_steps": [1000, 937.5, 833.33, 625], "video_steps": [1000, 750, 500, 250]}
WAN_1_3B = {
    # As Wan2.1-T2V-1.3B's own config.json has them.
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
    "model_type": "t2v",
    "dim": 1536,
    "eps": 1e-06,
    "ffn_dim": 8960,
    "freq_dim": 256,
    "in_dim": 16,
    "out_dim": 16,
    "num_heads": 12,
    "num_layers": 30,
    "text_len": 512,
}
LONGLIVE = {
    **WAN_1_3B,
    **STEPS,
    "latent_frames_per_chunk": 3,
    "local_attn_size": 12,
    "sink_size": 3,
    "timestep_shift": 5,
    "lora_alpha": 256,
}
SELF_FORCING = {**WAN_1_3B, **STEPS, "num_frame_per_block": 3, "window": 21, "sink": 0, "timestep_shift": 5}
REWARD_FORCING = {**LONGLIVE, "local_attn_size": 9}

TINY: dict[str, Any] = {
    **LONGLIVE,
    "dim": 48,  # two heads of 24: RoPE splits them 8, 8, 8
    "ffn_dim": 64,
    "num_heads": 2,
    "num_layers": 3,
    "freq_dim": 32,
    "text_len": 6,
    "text_dim": 20,
    "in_dim": 4,
    "out_dim": 4,
    "vace_in_dim": 12,
    "vace_layers": [0, 2],
    "vae": {"base_dim": 8, "z_dim": 4, "latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [1.5, 2.0, 0.5, 1.0]},
}
TINY_TEXT_ENCODER = {
    "model_type": "umt5",
    "vocab_size": 50,
    "d_model": 20,  # the text_dim of TINY
    "d_kv": 8,  # two heads of 8, not of 20 / 2: UMT5's may have any size
    "d_ff": 32,
    "num_layers": 3,
    "num_heads": 2,
}


def tiny(**changed: Any) -> CheckpointConfig:
    """A network of some 100 000 parameters."""
    return parse_config({**TINY, **changed})


def tiny_text_encoder(**changed: Any) -> TextEncoderConfig:
    """An encoder of some 10 000 parameters."""
    return parse_text_encoder_config({**TINY_TEXT_ENCODER, **changed})
