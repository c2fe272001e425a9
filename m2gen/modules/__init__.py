"""Layers: ordinary `nn.Module`s on top of `m2gen.ops`."""

from m2gen.modules.causal_monarch import CausalMonarch
from m2gen.modules.dimension_mixer import DimensionMixer
from m2gen.modules.hyena_filter import HyenaFilter
from m2gen.modules.linear import BlockDiagLinear, MonarchLinear
from m2gen.modules.long_conv import LongConv
from m2gen.modules.mixer_block import MixerBlock
from m2gen.modules.param_groups import param_groups
from m2gen.modules.sequence_mixer import SequenceMixer

__all__ = [
    "BlockDiagLinear",
    "CausalMonarch",
    "DimensionMixer",
    "HyenaFilter",
    "LongConv",
    "MixerBlock",
    "MonarchLinear",
    "SequenceMixer",
    "param_groups",
]
