"""M2-BERT in the conventions of transformers; importing this package makes its Auto classes know it."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from m2gen.models.m2bert.configuration import PRESETS, M2BertConfig
from m2gen.models.m2bert.modeling import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel

AutoConfig.register(M2BertConfig.model_type, M2BertConfig, exist_ok=True)
AutoModel.register(M2BertConfig, M2BertModel, exist_ok=True)
AutoModelForMaskedLM.register(M2BertConfig, M2BertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(M2BertConfig, M2BertForSequenceClassification, exist_ok=True)

__all__ = ["PRESETS", "M2BertConfig", "M2BertForMaskedLM", "M2BertForSequenceClassification", "M2BertModel"]
