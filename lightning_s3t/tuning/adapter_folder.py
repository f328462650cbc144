"""A served stage as a PEFT adapter: the two files of a folder that `PeftModel.from_pretrained` reads."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lightning_s3t.errors import AdapterError, ConfigurationError, UnsupportedError
from lightning_s3t.tuning.adapters import ADAPTER_NAME, adapter_tensors
from lightning_s3t.tuning.guard import named_tensors
from lightning_s3t.tuning.stages import StageBuilder

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
# types whose tensors PEFT saves under the names that they have in a layer; tests reload each
_TYPES = ("LORA", "IA3", "LOHA", "LOKR")


def adapter_config(builder: StageBuilder, stand_ins: Mapping[str, nn.Module]) -> bytes:
    """Return the configuration of a stage's adapters, as the JSON file that PEFT reads.

    The adapters of all stages up to the served one touch different layers, so that one configuration names them all.
    The head is a module that PEFT saves whole.

    Args:
        builder: The builder of the stage.
        stand_ins: Its modules, by the path of the module that each replaces.

    Raises:
        ConfigurationError: Whole layers were trained, without adapters.
        AdapterError: The adapter is of a kind that is not exported.
        UnsupportedError: PEFT would take other modules for the head too.
    """
    config = copy.deepcopy(_checked(builder))
    network = builder.network
    modules = [name for name, _ in network.named_modules()]
    targets = [_inside(builder, name) for name, module in stand_ins.items() if isinstance(module, BaseTunerLayer)]
    heads = [_inside(builder, name) for name in builder.layers.head]
    for head in heads:
        others = [name for name in modules if name.endswith(head) and name != head]
        if others:
            raise UnsupportedError(
                f"PEFT would take {', '.join(others)} for the head {head} too, whose name it ends with. Export the "
                "weights (form='weights')."
            )
    config.target_modules = _selector(targets, modules)  # type: ignore[attr-defined]
    for option in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        if hasattr(config, option):  # the targets are the remaining ones
            setattr(config, option, None)
    if getattr(config, "feedforward_modules", "") is None:
        config.feedforward_modules = []  # type: ignore[attr-defined]
    for option in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, option, None)
        if patterns:
            setattr(config, option, {_inside(builder, name): value for name, value in patterns.items()})
    config.modules_to_save = heads  # type: ignore[attr-defined]
    config.inference_mode = True
    config.base_model_name_or_path = getattr(getattr(network, "config", None), "_name_or_path", None) or None
    with tempfile.TemporaryDirectory(
        prefix="s3t-export-"
    ) as folder:  # PEFT can only write it to a file; it has no weights
        config.save_pretrained(folder)
        return Path(folder, CONFIG_FILE).read_bytes()


def adapter_weights(builder: StageBuilder, stand_ins: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the tensors of a stage's adapters and head, by the names that PEFT saves them under.

    Args:
        builder: The builder of the stage.
        stand_ins: Its modules, by the path of the module that each replaces.
    """
    found: dict[str, Tensor] = {}
    for name, module in stand_ins.items():
        own = adapter_tensors(module) if isinstance(module, BaseTunerLayer) else named_tensors(module)
        for relative, tensor in own.items():
            found[f"base_model.model.{_inside(builder, name)}.{_saved_name(relative)}"] = tensor.detach()
    return found


def _checked(builder: StageBuilder) -> PeftConfig:
    config = builder.adapter
    if config is None:
        raise ConfigurationError(
            "The store trains whole layers (adapter=None): there is no adapter to export. Export the weights "
            "(form='weights')."
        )
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in _TYPES or getattr(config, "use_dora", False):
        raise AdapterError(
            f"Adapters of type {'DoRA' if kind == 'LORA' else kind} are not exported as a folder. Expected one of "
            f"{', '.join(_TYPES)}. Export the weights (form='weights')."
        )
    return config


def _inside(builder: StageBuilder, name: str) -> str:
    """Return a module's path relative to the network, which is the module that PEFT gets."""
    network = builder.layers.network
    return name.removeprefix(f"{network}.") if network else name


def _selector(targets: Sequence[str], modules: Sequence[str]) -> list[str] | str:
    """Return a selector that makes PEFT choose exactly these modules; PEFT treats each name as the end of a path."""
    chosen = [name for name in modules if any(name == target or name.endswith(f".{target}") for target in targets)]
    return sorted(targets) if set(chosen) == set(targets) else "|".join(re.escape(target) for target in sorted(targets))


def _saved_name(relative: str) -> str:
    return ".".join(part for part in relative.split(".") if part != ADAPTER_NAME)
