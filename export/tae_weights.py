"""The weights of a tiny autoencoder as they are released, to those of our modules; their names are the same."""

from collections.abc import Mapping

from torch import Tensor

from export.modules.tae import TaeDecoder, TimeGrow


def tae_weights(weights: Mapping[str, Tensor], decoder: TaeDecoder) -> dict[str, Tensor]:
    """The same weights, where a stage that keeps the number of frames has weights that would double it.

    Some of TAEHV's releases are such: the later one of the two frames is meant, as TAEHV's own code has it.
    """
    fitting = dict(weights)
    for place, layer in enumerate(decoder.decoder):
        name = f"decoder.{place}.conv.weight"
        if isinstance(layer, TimeGrow) and layer.stride == 1 and name in weights:
            dim = layer.conv.out_channels
            fitting[name] = weights[name][-dim:] if len(weights[name]) == 2 * dim else weights[name]
    return fitting
