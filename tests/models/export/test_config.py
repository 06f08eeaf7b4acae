"""The configurations of a checkpoint and of its text encoder."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from export.config import (
    UMT5_XXL,
    WAN_LATENTS_MEAN,
    WAN_LATENTS_STD,
    LightTaeConfig,
    TaeConfig,
    load_config,
    load_text_encoder_config,
    parse_config,
    parse_text_encoder_config,
)
from export.errors import BadConfig
from tests.models.export.configs import LONGLIVE, REWARD_FORCING, SELF_FORCING, TINY_TEXT_ENCODER


def test_longlive_reads_wans_keys_and_ours(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(LONGLIVE))
    config = load_config(tmp_path)
    assert (config.dim, config.head_dim, config.num_layers, config.in_channels) == (1536, 128, 30, 16)
    assert (config.window, config.sink, config.latent_frames_per_chunk) == (12, 3, 3)
    assert config.text_steps == (1000, 937.5, 833.33, 625)
    assert (config.text_dim, config.patch_size, config.rope_positions) == (4096, (1, 2, 2), "absolute")
    assert (config.vae.dim, config.vae.spatial_factor, config.vae.temporal_factor) == (96, 8, 4)


def test_the_other_pipelines_of_the_family_differ_only_by_configuration():
    longlive = parse_config(LONGLIVE)
    assert parse_config(REWARD_FORCING) == longlive.model_copy(update={"window": 9})
    changed = {"window": 21, "sink": 0, "lora_alpha": None}
    assert parse_config(SELF_FORCING) == longlive.model_copy(update=changed)


def test_lightvae_is_the_vae_with_fewer_channels():
    config = parse_config({**LONGLIVE, "vae": {"type": "lightvae", "base_dim": 24}})
    assert config.vae.model_copy(update={"type": "wan", "dim": 96}) == parse_config(LONGLIVE).vae


def test_a_tiny_autoencoder_has_defaults_of_its_own():
    tae, lighttae = (parse_config({**LONGLIVE, "vae": {"type": name}}).vae for name in ("tae", "lighttae"))
    assert isinstance(tae, TaeConfig)
    assert (tae.type, tae.dim, tae.z_dim, tae.dim_mult, tae.activation) == ("tae", 64, 16, (1, 1, 2, 4), "relu")
    assert (tae.spatial_factor, tae.temporal_factor, tae.temporal_downsample) == (8, 4, (True, True, False))
    # The transformer's latents are TAEHV's own; lighttae makes them as they are before Wan normalises them.
    assert (tae.latents_mean, tae.latents_std) == ((0,), (1,))
    assert (lighttae.latents_mean, lighttae.latents_std) == (WAN_LATENTS_MEAN, WAN_LATENTS_STD)
    assert lighttae == LightTaeConfig(dim=tae.dim)
    ours = {"type": "tae", "dim": 16, "z_dim": 2, "num_res_blocks": 1, "activation": "silu", "latents_std": [2, 3]}
    assert parse_config({**LONGLIVE, "vae": ours}).vae == TaeConfig(
        dim=16, z_dim=2, num_res_blocks=1, activation="silu", latents_std=(2, 3)
    )


def test_each_missing_key_is_named(subtests: pytest.Subtests):
    required = ["dim", "ffn_dim", "num_heads", "text_len", "eps", "local_attn_size", "text_steps", "timestep_shift"]
    for missing in required:
        values = {name: value for name, value in LONGLIVE.items() if name != missing}
        with subtests.test(missing=missing), pytest.raises(BadConfig, match=f"^config.json: missing key {missing}$"):
            parse_config(values)
    with pytest.raises(BadConfig, match=r"^config\.json: missing keys dim, ffn_dim, .*video_steps$"):
        parse_config({})


BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"dim": "1536"}, "dim must be a valid integer, got '1536'$"),
    ({"dim": True}, "dim must be a valid integer, got True$"),
    ({"dim": 1537}, "dim = 1537 must be an even multiple of num_heads"),
    ({"freq_dim": 7}, "freq_dim = 7"),
    ({"eps": 0}, "eps must be greater than 0, got 0$"),
    ({"eps": math.inf}, "eps must be a finite number, got inf$"),
    ({"local_attn_size": -1}, "local_attn_size must be greater than or equal to 1"),
    ({"local_attn_size": 5}, "sink_size = 3 and latent_frames_per_chunk = 3"),
    ({"window": 12}, "local_attn_size and window are two names of one key: keep one$"),
    ({"text_steps": []}, "text_steps must have at least one step"),
    ({"video_steps": [500, 750]}, "video_steps must have .* and fall$"),
    ({"text_steps": [1000, "x"]}, "text_steps.1 must be a valid number, got 'x'$"),
    ({"text_steps": 1000}, "text_steps must be a list, got 1000$"),
    ({"patch_size": [2, 2, 2]}, "patch_size"),
    ({"sink_decay": 0.999}, 'sink_decay needs a sink_size above 0 and "rope_positions": "window"'),
    ({"sink_decay": 1.0, "rope_positions": "window"}, "sink_decay must be less than 1"),
    ({"sink_decay": 0.9, "rope_positions": "window", "global_sink": False}, "sink_decay and global_sink false exclude"),
    ({"first_text_steps": []}, "first_text_steps must have at least one step"),
    ({"context_noise": -1}, "context_noise must be greater than or equal to 0"),
    ({"weights": "both"}, "weights must be 'ema' or 'online'"),
    ({"rope_positions": "relative"}, "rope_positions must be 'absolute' or 'window'"),
    ({"vace_layers": [0, 30]}, "vace_layers must rise"),
    ({"vace_layers": [2, 4]}, "vace_layers must start with 0"),
    ({"model_type": "i2v"}, "model_type must be 't2v' or 'vace', got 'i2v'"),
    ({"cross_attn_norm": False}, "cross_attn_norm must be True, got False"),
    ({"in_channels": 16}, "unknown key in_channels$"),
    ({"sink_sise": 3, "dim": 0}, "dim must be .*; unknown key sink_sise$"),
    ({"vae": {"type": "huge"}}, "vae must be an object whose type is one of wan, lightvae, tae, lighttae"),
    ({"vae": {"type": ["tae"]}}, "vae must be an object whose type is one of"),
    ({"vae": {"depth": 3}}, "unknown key vae.depth$"),
    ({"vae": {"activation": "silu"}}, "unknown key vae.activation$"),
    ({"vae": {"base_dim": 8, "dim": 8}}, "vae.base_dim and dim are two names of one key"),
    ({"vae": {"type": "tae", "activation": "gelu"}}, "vae.activation must be 'relu' or 'silu'"),
    ({"vae": {"type": "tae", "dim_mult": [1, 2]}}, "vae.dim_mult must have"),
    ({"vae": {"type": "lighttae", "z_dim": 4}}, "vae.latents_mean must have one entry, or z_dim = 4 entries"),
    ({"vae": {"latents_std": [1.0, 2.0]}}, "vae.latents_std must have one entry, or z_dim = 16 entries"),
    ({"vae": {"dim_mult": [1, 2]}}, "vae.dim_mult must have"),
    ({"vae": 3}, "vae must be an object"),
]


def test_each_bad_value_is_named(subtests: pytest.Subtests):
    for changed, message in BAD_VALUES:
        with subtests.test(changed=changed), pytest.raises(BadConfig, match=f"^config.json: {message}"):
            parse_config({**LONGLIVE, **changed})


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_an_invalid_configuration_file_is_named(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadConfig, match=r"config\.json"):
        load_config(tmp_path)


def test_a_text_encoder_without_a_file_is_umt5_xxl(tmp_path: Path):
    config = load_text_encoder_config(tmp_path, text_dim=4096)
    assert (config.vocab_size, config.dim, config.ffn_dim, config.num_layers) == (256384, 4096, 10240, 24)
    assert (config.num_heads, config.head_dim, config.num_buckets, config.max_distance) == (64, 64, 32, 128)
    assert config.eps == 1e-6


def test_what_transformers_writes_of_a_text_encoder_is_read(tmp_path: Path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: see docs/export.md")
    transformers.UMT5Config(**UMT5_XXL, layer_norm_epsilon=1e-5).save_pretrained(tmp_path)
    expected = parse_text_encoder_config({**UMT5_XXL, "layer_norm_epsilon": 1e-5})
    assert load_text_encoder_config(tmp_path, text_dim=4096) == expected


def test_each_missing_key_of_the_text_encoder_is_named(subtests: pytest.Subtests):
    for missing in TINY_TEXT_ENCODER.keys() - {"model_type"}:
        values = {name: value for name, value in TINY_TEXT_ENCODER.items() if name != missing}
        with subtests.test(missing=missing), pytest.raises(BadConfig, match=f"missing key {missing}$"):
            parse_text_encoder_config(values)


BAD_TEXT_ENCODER_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"d_model": "20"}, "d_model must be a valid integer, got '20'"),
    ({"d_model": 24}, "d_model = 24 must be the transformer's text_dim = 20$"),
    ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be greater than 0"),
    ({"relative_attention_num_buckets": 7}, "relative_attention_num_buckets = 7 must be even"),
    ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets = 2 must be even, and 4 or more"),
    ({"relative_attention_max_distance": 8}, "relative_attention_max_distance = 8 must be above a quarter"),
    ({"model_type": "t5"}, "model_type must be 'umt5', got 't5'"),
    ({"feed_forward_proj": "relu"}, "feed_forward_proj must be 'gated-gelu', got 'relu'"),
    ({"num_layer": 3}, "unknown key num_layer$"),
]


def test_each_bad_value_of_the_text_encoder_is_named_with_its_file(tmp_path: Path, subtests: pytest.Subtests):
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    for changed, message in BAD_TEXT_ENCODER_VALUES:
        (folder / "config.json").write_text(json.dumps({**TINY_TEXT_ENCODER, **changed}))
        with subtests.test(changed=changed), pytest.raises(BadConfig, match=f"text_encoder/config.json: {message}"):
            load_text_encoder_config(folder, text_dim=20)


def test_a_small_transformer_needs_a_file(tmp_path: Path):
    with pytest.raises(BadConfig, match=r"d_model = 4096 must be .*text_dim = 20; without a config\.json it is UMT5-X"):
        load_text_encoder_config(tmp_path, text_dim=20)


def test_an_invalid_text_encoder_configuration_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadConfig, match=r"config\.json: .*object"):
        load_text_encoder_config(tmp_path, text_dim=20)
