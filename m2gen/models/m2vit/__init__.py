"""M2-ViT in the conventions of transformers; importing this package makes its Auto classes know it."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from m2gen.models.m2vit.configuration import PRESETS, M2ViTConfig
from m2gen.models.m2vit.modeling import M2ViTForImageClassification, M2ViTModel

AutoConfig.register(M2ViTConfig.model_type, M2ViTConfig, exist_ok=True)
AutoModel.register(M2ViTConfig, M2ViTModel, exist_ok=True)
AutoModelForImageClassification.register(M2ViTConfig, M2ViTForImageClassification, exist_ok=True)

__all__ = ["PRESETS", "M2ViTConfig", "M2ViTForImageClassification", "M2ViTModel"]
