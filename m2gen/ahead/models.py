"""Models by name: their configuration, and the problems that they pose at every size that is asked for. Made of fake
tensors, so without weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2gen.ahead.record import Wanted, recorder
from m2gen.ahead.rehearse import call_all, sizes_of
from m2gen.dtypes import DTYPES
from m2gen.errors import M2GenError, ProblemError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from m2gen.device.limits import DeviceLimits


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model is fed: tokens of every length (none: of the longest) in every batch; and its weights' dtype, None
    for its configuration's."""

    lengths: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    dtype: str | None = None

    @classmethod
    def of(cls, lengths: str, batches: str, dtype: str | None = None) -> Sizes:
        """As the command line has them: "512,2048", "1,8", "bf16". Raises ProblemError."""
        if dtype is not None and dtype not in DTYPES:
            raise ProblemError(f"--dtype {dtype}", "there is no such dtype", f"use one of {', '.join(DTYPES)}")
        return cls(_numbers("--lengths", lengths), _numbers("--batches", batches) or (1,), dtype)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        found = (0,)
    if any(number < 1 for number in found):
        raise ProblemError(f"{option} {text}", "not numbers from 1 on", f"write for example {option} 512,2048")
    return found


def config_of(name: str) -> Any:
    """The configuration in a folder with a config.json, or a preset's, such as "80M". Raises M2GenError."""
    from m2gen.models import needed_for

    needed_for(f"the model {name!r}")  # before transformers is imported, whose own error does not say what to install
    from transformers import AutoConfig

    from m2gen.models import M2BertConfig, M2GPTPretrainedConfig, M2ViTConfig  # importing them registers the models
    from m2gen.models.m2bert.configuration import PRESETS as BERT
    from m2gen.models.m2gpt.configuration import PRESETS as GPT
    from m2gen.models.m2vit.configuration import PRESETS as VIT

    presets = dict.fromkeys(BERT, M2BertConfig)
    presets |= dict.fromkeys(GPT, M2GPTPretrainedConfig) | dict.fromkeys(VIT, M2ViTConfig)
    if name in presets:
        return presets[name].preset(name)
    if (Path(name) / "config.json").is_file():
        try:
            return AutoConfig.from_pretrained(name, local_files_only=True)
        except (OSError, ValueError) as error:
            what = f"its config.json is not understood ({error})"
            raise M2GenError(f"the model {name!r}", what, "give a folder that save_pretrained wrote") from error
    raise M2GenError(
        f"the model {name!r}",
        "neither a folder with a config.json nor a preset",
        f"use a folder or one of {', '.join(presets)}",
    )


def model_of(config: Any, dtype: torch.dtype) -> nn.Module:
    """The model of a configuration: without a head where there is one without. Raises M2GenError where it is none."""
    from transformers import AutoModel, AutoModelForCausalLM

    for auto in (AutoModel, AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            model: nn.Module = auto.from_config(config, dtype=dtype)
            return model
    raise M2GenError(f"a {config.model_type} model", "no class is registered for it", "import its module first")


def record(
    wanted: Wanted, name: str, limits: DeviceLimits, sizes: Sizes | None = None, *, gradients: bool = False
) -> None:
    """Add what the model `name`, a folder's or a preset's, calls in evaluation, with `gradients` in training too, and
    what generation with a cache calls. Raises M2GenError."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from m2gen.runtime.build.limits import planned_for

    config, sizes = config_of(name), sizes or Sizes()
    weights = getattr(torch, DTYPES[sizes.dtype].torch_name) if sizes.dtype else config.dtype or torch.float32
    with FakeTensorMode():
        model: Any = model_of(config, weights)
        of_all = list(sizes_of(model, sizes.lengths or None, sizes.batches))
        with planned_for(limits), recorder(wanted, name, limits):
            call_all(model, of_all, gradients)
