"""The configuration of the text encoder: transformers' keys, or UMT5-XXL's sizes where there is no file."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.config import UMT5_XXL, load_text_encoder_config, parse_text_encoder_config
from export.errors import BadConfig
from tests.models.export.configs import TINY_TEXT_ENCODER


def test_without_a_file_it_is_umt5_xxl(tmp_path: Path):
    config = load_text_encoder_config(tmp_path, text_dim=4096)
    assert (config.vocab_size, config.dim, config.ffn_dim, config.num_layers) == (256384, 4096, 10240, 24)
    assert (config.num_heads, config.head_dim, config.num_buckets, config.max_distance) == (64, 64, 32, 128)
    assert config.eps == 1e-6


def test_what_transformers_writes_is_read(tmp_path: Path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: see docs/export.md")
    transformers.UMT5Config(**UMT5_XXL, layer_norm_epsilon=1e-5).save_pretrained(tmp_path)
    expected = parse_text_encoder_config({**UMT5_XXL, "layer_norm_epsilon": 1e-5})
    assert load_text_encoder_config(tmp_path, text_dim=4096) == expected


@pytest.mark.parametrize("missing", [name for name in TINY_TEXT_ENCODER if name != "model_type"])
def test_a_missing_key_is_named(missing: str):
    with pytest.raises(BadConfig, match=f"missing key {missing}$"):
        parse_text_encoder_config({name: value for name, value in TINY_TEXT_ENCODER.items() if name != missing})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"d_model": "20"}, "d_model must be a valid integer, got '20'"),
        ({"d_model": 24}, "d_model = 24 must be the transformer's text_dim = 20$"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be greater than 0"),
        ({"relative_attention_num_buckets": 7}, "relative_attention_num_buckets = 7 must be even"),
        ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets = 2 must be even, and 4 or more"),
        ({"relative_attention_max_distance": 8}, "relative_attention_max_distance = 8 must be above a quarter"),
        ({"model_type": "t5"}, "model_type must be 'umt5', got 't5'"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj must be 'gated-gelu', got 'relu'"),
        ({"num_layer": 3}, "unknown key num_layer$"),
    ],
)
def test_a_bad_value_is_named_with_the_folder(tmp_path: Path, changed: dict[str, Any], message: str):
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**TINY_TEXT_ENCODER, **changed}))
    with pytest.raises(BadConfig, match=f"text_encoder/config.json: {message}"):
        load_text_encoder_config(folder, text_dim=20)


def test_a_small_transformer_needs_a_file(tmp_path: Path):
    with pytest.raises(BadConfig, match=r"d_model = 4096 must be .*text_dim = 20; without a config\.json it is UMT5-X"):
        load_text_encoder_config(tmp_path, text_dim=20)


def test_a_file_that_is_no_configuration_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadConfig, match=r"config\.json: .*object"):
        load_text_encoder_config(tmp_path, text_dim=20)
