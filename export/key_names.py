"""The names that weights have in checkpoints, and Wan's own, which our modules use."""

import re

_PREFIXES = ("model.", "diffusion_model.", "transformer.", "base_model.model.")

# diffusers' names, whole dotted parts. Those that stand alone at the top come first.
_FROM_DIFFUSERS = tuple(
    (re.compile(rf"(?<![^.]){pattern}(?![^.])"), name)
    for pattern, name in (
        (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
        (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
        (r"condition_embedder\.time_proj", "time_projection.1"),
        (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
        (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
        (r"^proj_out", "head.head"),
        (r"^scale_shift_table", "head.modulation"),
        ("scale_shift_table", "modulation"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        (r"to_(q|k|v)", r"\1"),
        (r"to_out\.0", "o"),
        ("norm2", "norm3"),
        (r"ffn\.net\.0\.proj", "ffn.0"),
        (r"ffn\.net\.2", "ffn.2"),
        ("proj_in", "before_proj"),
        ("proj_out", "after_proj"),
    )
)


def wan_name(name: str) -> str:
    """A transformer weight's name in Wan's own checkpoints, from any of the forms that we accept."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    for pattern, replacement in _FROM_DIFFUSERS:
        name = pattern.sub(replacement, name)
    return name
