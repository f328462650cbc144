"""PEFT adapters, one module at a time: which modules get one, and a fresh one from a seed of its own."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from typing import Any

import peft
import torch
from peft import PeftConfig
from peft.functional import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn

from lightning_s3t.errors import AdapterError
from lightning_s3t.tuning.fingerprint import fingerprints
from lightning_s3t.tuning.guard import named_tensors
from lightning_s3t.tuning.layers import LayerGroup, Layers
from lightning_s3t.tuning.randomness import seeded

ADAPTER_NAME = "s3t"

DEFAULT_ADAPTER: dict[str, str | int | float | bool] = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "use_rslora": True,
}
"""The paper's adapter for vision transformers (section 4): rank 16, rank-stabilised, dropout 0.1."""

# adapters with state that all modules share, which older releases of PEFT inject anyway
_SHARED_STATE = ("FROD", "PVERA", "TINYLORA", "UNILORA", "VBLORA", "VERA")
# options that train tensors outside the module with the adapter, which no unit could own
_FORBIDDEN = ("modules_to_save", "target_parameters", "trainable_token_indices", "layer_replication")


def resolve_adapter(adapter: PeftConfig | Mapping[str, Any] | None) -> PeftConfig | None:
    """Convert a user's `adapter` argument into a separate PeftConfig.

    Args:
        adapter: A PeftConfig, a dict of one, or None for whole-layer fine-tuning. A dict without `peft_type` changes
            options of the default adapter.

    Returns:
        A copy of the configuration, or None.

    Raises:
        AdapterError: PEFT does not take it, or it would train more than the modules that carry the adapter.

    Example:
        >>> resolve_adapter({"peft_type": "LORA", "r": 4}).lora_dropout
        0.0
        >>> resolve_adapter({"r": 4}).lora_dropout
        0.1
    """
    if adapter is None:
        return None
    if isinstance(adapter, PeftConfig):
        config = copy.deepcopy(adapter)
    elif isinstance(adapter, Mapping):
        config = _from_dict(adapter)
    else:
        raise AdapterError(
            f"Expected argument `adapter` to be a PeftConfig, a dict of one or None but got {type(adapter).__name__}."
        )
    for option in _FORBIDDEN:
        if getattr(config, option, None):
            raise AdapterError(
                f"The adapter sets {option}={getattr(config, option)!r}, which trains tensors outside the modules "
                "that carry an adapter: no unit could own them. Leave it out (the head is trained without it)."
            )
    config.inference_mode = False
    return config


def adapter_for(module: nn.Module, layers: Layers, adapter: PeftConfig | None) -> PeftConfig | None:
    """Return the adapter to train a module with, if the default may not fit.

    If the user has not chosen one, a module's own PEFT adapters are trained, or whole layers if the default adapter
    fits no module of a layer group (recurrent layers).

    Args:
        module: The user's module.
        layers: Its layer groups.
        adapter: The requested adapter, from `resolve_adapter`.

    Returns:
        The adapter, or None to train the layers themselves.

    Raises:
        AdapterError: The module has adapters, and others were requested.

    Example:
        >>> from lightning_s3t.tuning.layers import find_layers
        >>> net = nn.ModuleDict({"rnn1": nn.GRU(4, 4), "rnn2": nn.GRU(4, 4), "fc": nn.Linear(4, 2)})
        >>> layers = find_layers(net, slices=2)
        >>> adapter_for(net, layers, resolve_adapter(DEFAULT_ADAPTER)) is None
        True
    """
    if adapter is None:
        return None
    own = own_adapters(module)
    if not _is_default(adapter):
        if own:
            raise AdapterError(
                f"The module has {len(own)} PEFT adapters of its own ({', '.join(own[:3])}), and S3T(adapter=...) asks "
                "for others, which would be put on top of them. Give trainer.fit the plain model and S3T the adapter; "
                "or leave `adapter` out, and the module's own are trained, group by group."
            )
        return adapter
    fits = all(_default_targets(_candidates(module, group), adapter) for group in layers.groups)
    return adapter if fits and not own else None


def own_adapters(module: nn.Module) -> list[str]:
    """Return the paths of a module's own PEFT layers.

    Args:
        module: The user's module.
    """
    return [name for name, part in module.named_modules() if isinstance(part, BaseTunerLayer)]


def describe_adapter(config: PeftConfig | None) -> dict[str, Any] | None:
    """Return an adapter configuration as JSON-ready data, for the store and for provenance.

    Args:
        config: The configuration, or None for whole layers.

    Example:
        >>> describe_adapter(resolve_adapter({"peft_type": "LORA", "r": 4}))["r"]
        4
    """
    if config is None:
        return None
    # versions of PEFT add fields: the defaults say nothing about the adapter, so they are left out
    default = type(config)().to_dict()
    data = {name: value for name, value in config.to_dict().items() if value != default.get(name)}
    data["peft_type"] = _type_name(config)
    data.pop("runtime_config", None)
    found: dict[str, Any] = json.loads(
        json.dumps(data, sort_keys=True, default=lambda x: sorted(x) if isinstance(x, (set, frozenset)) else str(x))
    )
    return found


def find_targets(root: nn.Module, layers: Layers, config: PeftConfig) -> dict[int, tuple[str, ...]]:
    """Choose the modules that get an adapter, group by group.

    With `target_modules` in the configuration, PEFT's own rules decide, on the modules' paths from `root`. Without,
    it is every linear layer of the groups, or every convolution in groups that have none (for LayerNorm tuning, every
    LayerNorm).

    Args:
        root: The module that `layers` was found in.
        layers: Its layer groups.
        config: The adapter.

    Returns:
        The paths of the target modules by group index (1 is the top group).

    Raises:
        AdapterError: A group has no fitting module.
    """
    targets: dict[int, tuple[str, ...]] = {}
    wanted = getattr(config, "target_modules", None)
    for group in layers.groups:
        candidates = _candidates(root, group)
        if wanted is not None and wanted != "all-linear":
            names = [name for name in candidates if bool(_matches(config, name))]
        else:
            names = [name for name in _default_targets(candidates, config) if _chosen(config, name)]
        if not names:
            kinds = sorted({type(module).__name__ for module in candidates.values()})
            raise AdapterError(
                f"No module of layer group {group.index} ({', '.join(group.modules)}) fits the adapter's "
                f"target_modules={wanted!r}. Found modules of types {', '.join(kinds)}. Name targets "
                "that every group has, or use adapter=None to fine-tune whole layers."
            )
        targets[group.index] = tuple(names)
    return targets


def inject_adapter(original: nn.Module, name: str, config: PeftConfig, seed: int) -> BaseTunerLayer:
    """Make a freshly drawn adapter around one module, without touching the network that the module lives in.

    PEFT draws adapters in the order of their injection, so one seed for a whole network would tie each adapter to
    all before it. Here every module is injected alone, with its own seed, into a skeleton of its path.

    Args:
        original: The pretrained module; it is shared with the adapter, not copied.
        name: Its dotted path, which PEFT's per-layer options (`rank_pattern`, ...) are matched against.
        config: The adapter.
        seed: The seed of the draw.

    Returns:
        PEFT's layer, which replaces `original`.

    Raises:
        AdapterError: PEFT cannot adapt the module, or would change or train its pretrained weights.

    Example:
        >>> config = resolve_adapter({"peft_type": "LORA", "r": 2})
        >>> layer = inject_adapter(nn.Linear(3, 3), "blocks.0.fc", config, seed=1)
        >>> adapter_tensors(layer)["lora_A.s3t.weight"].shape
        torch.Size([2, 3])
    """
    config = copy.deepcopy(config)
    config.target_modules = {name}  # type: ignore[attr-defined]
    for option in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        if hasattr(config, option):  # find_targets has applied them
            setattr(config, option, None)
    if getattr(config, "feedforward_modules", "") is None:
        config.feedforward_modules = []  # type: ignore[attr-defined]
    skeleton = _skeleton(original, name)
    trainable = {id(p): p.requires_grad for p in original.parameters()}
    training = [(module, module.training) for module in original.modules()]
    original.eval()  # in training, a weight with spectral_norm changes when it is looked at
    try:
        with seeded(seed), warnings.catch_warnings():
            # PEFT corrects fan_in_fan_out for each module itself, with a warning per module
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
            # it doubts every LayerNorm once a module too, although LayerNorm tuning is its own
            warnings.filterwarnings("ignore", message="Unsupported layer type .*LayerNorm")
            if _type_name(config) in _SHARED_STATE:
                raise ValueError("It keeps state on the tuner that all modules share.")
            if _ignores_dilation(config, original):
                raise ValueError("PEFT's LoRA leaves a convolution's dilation out, so its answers have another size.")
            inject_adapter_in_model(config, skeleton, ADAPTER_NAME)
        layer = skeleton.get_submodule(name)
        if not isinstance(layer, BaseTunerLayer):
            raise AdapterError(
                f"PEFT put a {type(layer).__name__} in the place of {name}, which cannot be swapped out."
            )
        trained = [n for n, p in original.named_parameters() if p.requires_grad]
        if trained:
            raise AdapterError(
                f"The adapter trains pretrained parameters of {name}: {', '.join(trained)}. Every unit would change "
                "them for all others. Set bias='none'."
            )
    except AdapterError:
        raise
    except Exception as error:
        raise AdapterError(
            f"PEFT cannot put a {type(config).__name__} on {name} ({type(original).__name__}): {error} Choose other "
            "target_modules, another adapter, or adapter=None for whole layers."
        ) from error
    finally:
        for parameter in original.parameters():
            parameter.requires_grad = trainable[id(parameter)]
        for module, mode in training:
            module.training = mode
    # without gradients torch's encoder layers run as one fused call on their layers' weights, which bypasses adapters;
    # a hook on one of the layers makes them call their layers
    layer.register_forward_pre_hook(_pass_on)
    return layer


def check_adapter(root: nn.Module, targets: Mapping[int, tuple[str, ...]], config: PeftConfig) -> None:
    """Try the adapter on a copy of each kind of target, before anything is changed.

    Args:
        root: The module that the targets are paths of.
        targets: The result of `find_targets`.
        config: The adapter.

    Raises:
        AdapterError: PEFT cannot adapt a target, or its initialisation changes the pretrained weights (PiSSA, OLoRA,
            ...): deactivating would then not restore the pretrained layer.
    """
    tried: set[tuple[type[nn.Module], tuple[torch.Size, ...]]] = set()
    for name in (name for names in targets.values() for name in names):
        module = root.get_submodule(name)
        kind = (type(module), tuple(p.shape for p in module.parameters()))
        if kind in tried:
            continue
        tried.add(kind)
        probe = copy.deepcopy(module)
        before = fingerprints(named_tensors(probe.eval()))
        inject_adapter(probe, name, config, seed=0)
        if fingerprints(named_tensors(probe)) != before:
            raise AdapterError(
                f"The adapter's initialisation changes the pretrained weights of {name}, so deactivating it would "
                "not give the pretrained layer back. Use an initialisation that leaves them alone "
                "(init_lora_weights=True)."
            )


def adapter_tensors(layer: BaseTunerLayer) -> dict[str, torch.Tensor]:
    """Return the tensors that belong to an adapter and not to the module it wraps, by relative name.

    Args:
        layer: A layer made by `inject_adapter`.
    """
    base = {id(tensor) for tensor in named_tensors(layer.get_base_layer()).values()}
    whole = named_tensors(layer)  # type: ignore[arg-type]
    return {name: tensor for name, tensor in whole.items() if id(tensor) not in base}


def _from_dict(adapter: Mapping[str, Any]) -> PeftConfig:
    # on a command line, `--adapter.r=4` alone makes such a dict
    values = dict(adapter) if "peft_type" in adapter else {**DEFAULT_ADAPTER, **adapter}
    given = values.pop("peft_type")
    kind = str(getattr(given, "value", given)).upper()
    known = {str(getattr(k, "value", k)): v for k, v in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        raise AdapterError(f"PEFT knows no adapter of type {kind!r}. Found: {', '.join(sorted(known))}.")
    try:
        config: PeftConfig = known[kind](**values)
    except (TypeError, ValueError) as error:
        raise AdapterError(
            f"PEFT's {known[kind].__name__} does not take the adapter {dict(adapter)}: {error}"
        ) from error
    return config


def _matches(config: PeftConfig, name: str) -> bool:
    found = check_target_module_exists(config, name)
    return bool(found) and type(found).__name__ != "_ExcludedModule"


def _chosen(config: PeftConfig, name: str) -> bool:
    # PEFT's rules for `exclude_modules` and `layers_to_transform`, which it applies to named targets only
    config = copy.copy(config)
    config.target_modules = [name.rpartition(".")[2]]  # type: ignore[attr-defined]
    return _matches(config, name)


def _is_default(config: PeftConfig) -> bool:
    return describe_adapter(config) == describe_adapter(resolve_adapter(DEFAULT_ADAPTER))


def _candidates(root: nn.Module, group: LayerGroup) -> dict[str, nn.Module]:
    return {
        f"{block}.{name}" if name else block: module
        for block in group.modules
        for name, module in root.get_submodule(block).named_modules()
    }


def _default_targets(candidates: Mapping[str, nn.Module], config: PeftConfig) -> list[str]:
    # attention modules of torch read their projections' weights without calling them: an adapter there never acts
    uncalled = {
        id(child)
        for module in candidates.values()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.children()
    }
    if _type_name(config) == "LN_TUNING":
        return [name for name, module in candidates.items() if isinstance(module, nn.LayerNorm)]
    linear = [
        name
        for name, module in candidates.items()
        # transformers' Conv1D is a linear layer with its weight transposed
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and id(module) not in uncalled
    ]
    convolutions = [
        name
        for name, module in candidates.items()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and not _ignores_dilation(config, module)
    ]
    return linear or convolutions


def _ignores_dilation(config: PeftConfig, module: nn.Module) -> bool:
    if _type_name(config) != "LORA" or not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return False
    return any(size > 1 and step > 1 for size, step in zip(module.kernel_size, module.dilation, strict=True))


def _type_name(config: PeftConfig) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _pass_on(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Do nothing."""


def _skeleton(module: nn.Module, name: str) -> nn.Module:
    *path, leaf = name.split(".")
    root = parent = nn.Module()
    for part in path:
        child = nn.Module()
        parent.add_module(part, child)
        parent = child
    parent.add_module(leaf, module)
    return root
