"""A whole tiny checkpoint on disk: all its parts, with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from export.config import CheckpointConfig, TaeConfig, VaeConfig, parse_config, parse_text_encoder_config
from export.modules.tae import TaeDecoder, TaeEncoder
from export.modules.text_encoder import TextEncoder
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from tests.models.export.configs import TINY, TINY_TEXT_ENCODER
from tests.models.export.networks import normal, random_weights

WHOLE: dict[str, Any] = {
    **TINY,
    "vace_in_dim": 72,  # 4 + 4 latent channels and 8 x 8 of the mask
    "text_len": 8,
    "vae": {**TINY["vae"], "num_res_blocks": 1},  # the fewest: translating a VAE takes longest
}
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "moving", "left", "right"]
LORA_LAYER = "blocks.1.ffn.2"


def write_checkpoint(folder: Path, **changed: Any) -> CheckpointConfig:
    """Write a checkpoint with all parts that its configuration has: `WHOLE`, but for the changes."""
    values = {**WHOLE, **changed}
    config = parse_config(values)
    for name in ("vae", "text_encoder"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    parts: list[torch.nn.Module] = [CausalTransformer(config), TextKv(config)]
    if config.vace_layers:
        parts += [VaceBranch(config), TextKv(config, vace=True)]
    torch.save({"generator": random_weights(*parts)}, folder / "base.pt")
    torch.save(random_weights(*_autoencoder(config.vae), seed=1), folder / "vae" / "vae.pth")

    encoder = {**TINY_TEXT_ENCODER, "vocab_size": len(WORDS), "num_layers": 1}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(encoder))
    weights = random_weights(TextEncoder(parse_text_encoder_config(encoder), config.text_len), seed=2)
    torch.save(weights, folder / "text_encoder" / "encoder.pth")
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    words.save(str(folder / "text_encoder" / "tokenizer.json"))
    return config


def _autoencoder(config: VaeConfig) -> tuple[torch.nn.Module, torch.nn.Module]:
    if isinstance(config, TaeConfig):
        return TaeEncoder(config), TaeDecoder(config)
    return VaeEncoder(config), VaeDecoder(config)


def write_lora(path: Path, seed: int, layer: str = LORA_LAYER) -> Path:
    """Write a LoRA of the tiny transformer's feed-forward layers."""
    weights = {f"diffusion_model.{layer}.lora_A.weight": normal(2, TINY["ffn_dim"], seed=seed)}
    weights[f"diffusion_model.{layer}.lora_B.weight"] = normal(TINY["dim"], 2, seed=seed + 1)
    torch.save(weights, path)
    return path
