"""Released models of the family: how each generates, and where its files are.

The dimensions come from the files. What they don't say, such as the window and the steps, is what the authors run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from export.errors import BadConfig
from export.tensor_files import WeightSet

# Steps that the releases write as 1000, 750, 500 and 250 and shift by 5, at full precision.
_FOUR_STEPS = (1000.0, 937.5, 833.3333333333334, 625.0)
_WAN = {
    "model_type": "t2v",
    "dim": 1536,
    "ffn_dim": 8960,
    "num_heads": 12,
    "num_layers": 30,
    "in_dim": 16,
    "out_dim": 16,
    "freq_dim": 256,
    "text_len": 512,
    "eps": 1e-06,
    "timestep_shift": 5,
    "text_steps": _FOUR_STEPS,
    "video_steps": (1000, 750, 500, 250),
}
WAN_REPOSITORIES = ("Wan-AI/Wan2.1-T2V-1.3B", "daydreamlive/Wan2.1-T2V-1.3B")
VACE_REPOSITORY = "Wan-AI/Wan2.1-VACE-1.3B"


@dataclass(frozen=True)
class Preset:
    """A released model.

    Attributes:
        name: on the command line.
        settings: keys of config.json: how it generates, and the dimensions of the release.
        repositories: hub ids of its weights, the authors' own first; others hold copies.
        transformer: the file of the transformer in them.
        lora: the file of an adapter that belongs to it and is merged, None if there is none.
        weights: the weights that its authors run, where its file has both.
    """

    name: str
    settings: Mapping[str, Any]
    repositories: tuple[str, ...]
    transformer: str
    lora: str | None = None
    weights: WeightSet = WeightSet.ONLINE
    others: Mapping[str, Any] = field(default_factory=dict)


def _preset(name: str, repositories: tuple[str, ...], transformer: str, **more: Any) -> Preset:
    fields = {key: more.pop(key) for key in ("lora", "weights") if key in more}
    return Preset(name, {**_WAN, **more}, repositories, transformer, **fields)


_LONGLIVE = ("Efficient-Large-Model/LongLive-1.3B", "daydreamlive/LongLive-1.3B")
_LONGLIVE_FILES = {"lora": "models/lora.pt", "lora_alpha": 256}
_CHUNKS = {"num_frame_per_block": 3, "local_attn_size": 21, "sink_size": 0}
_FRAMES = {"num_frame_per_block": 1, "local_attn_size": 21, "sink_size": 0, "weights": WeightSet.EMA}
_WINDOW = {"num_frame_per_block": 3, "local_attn_size": 12, "sink_size": 3}
_CAUSAL = ("zhuhz22/Causal-Forcing",)

PRESETS = {
    preset.name: preset
    for preset in (
        _preset("longlive-1.3b", _LONGLIVE, "models/longlive_base.pt", **_LONGLIVE_FILES, **_WINDOW),
        _preset(
            "longlive-1.3b-infinite",
            _LONGLIVE,
            "models/longlive_base.pt",
            **{**_LONGLIVE_FILES, **_WINDOW, "rope_positions": "window"},
        ),
        _preset(
            "self-forcing",
            ("gdhe17/Self-Forcing",),
            "checkpoints/self_forcing_dmd.pt",
            **{**_CHUNKS, "weights": WeightSet.EMA},
        ),
        _preset("causal-forcing", _CAUSAL, "chunkwise/causal_forcing.pt", **_CHUNKS),
        _preset("causal-forcing-framewise", _CAUSAL, "framewise/causal_forcing.pt", **_FRAMES),
        _preset(
            "causal-forcing-framewise-2step",
            _CAUSAL,
            "causal-forcing++/framewise-2step.pt",
            **{**_FRAMES, "text_steps": (1000.0, 833.3333333333334), "first_text_steps": _FOUR_STEPS},
        ),
        _preset(
            "causal-forcing-framewise-1step",
            _CAUSAL,
            "causal-forcing++/framewise-1step.pt",
            **{**_FRAMES, "text_steps": (1000.0,), "first_text_steps": _FOUR_STEPS},
        ),
        _preset(
            "reward-forcing",
            ("JaydenLu666/Reward-Forcing-T2V-1.3B", "daydreamlive/Reward-Forcing-T2V-1.3B"),
            "rewardforcing.pt",
            **{**_WINDOW, "local_attn_size": 9, "rope_positions": "window", "sink_decay": 0.999},
        ),
        _preset(
            "streamdiffusionv2",
            ("jerryfeng/StreamDiffusionV2", "daydreamlive/StreamDiffusionV2"),
            "wan_causal_dmd_v2v/model.pt",
            num_frame_per_block=1,
            local_attn_size=6,
            sink_size=3,
            video_steps=(750, 250),
        ),
    )
}
_OTHER_NAMES = {"longlive": "longlive-1.3b", "causal-forcing-chunkwise": "causal-forcing"}

# Models that look as if they would fit, and what they need that is not here.
UNSUPPORTED = {
    "memflow": "its memory bank: keys and values of earlier frames that each prompt selects",
    "rolling-forcing": "its sampler, which denoises a window of chunks at rising noise levels together",
    "causal-forcing-longvideo": "its sampler, which denoises a window of chunks at rising noise levels together",
    "krea-realtime-14b": "its cache, which is computed again from context frames under a block-causal mask each chunk",
    "longlive-2.0": "Wan2.2's VAE, the UniPC sampler and sinks that are pinned where shots begin",
    "self-forcing++": "released weights: there are none",
}
_UNSUPPORTED_NAMES = {
    "krea": "krea-realtime-14b",
    "krea-14b": "krea-realtime-14b",
    "krea-realtime": "krea-realtime-14b",
    "longlive-2": "longlive-2.0",
    "longlive2": "longlive-2.0",
    "longlive-2.0-5b": "longlive-2.0",
    "rollingforcing": "rolling-forcing",
    "longlive-5b": "longlive-2.0",
}


def find_preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        BadConfig: there is none; the message lists those there are, or says what the model needs.
    """
    key = name.lower().replace("_", "-").replace(" ", "-")
    key = _OTHER_NAMES.get(key, key)
    if key in PRESETS:
        return PRESETS[key]
    key = _UNSUPPORTED_NAMES.get(key, key)
    if key in UNSUPPORTED:
        raise BadConfig(f"{name} is not supported; what is missing: {UNSUPPORTED[key]}")
    raise BadConfig(f"there is no preset {name}: choose one of {', '.join(PRESETS)}")
