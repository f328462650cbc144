"""What adapters compute is kept with a store, so that another reading of the same tensors is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from lightning_s3t import EnsembleModule
from lightning_s3t.errors import StoreMismatchError
from lightning_s3t.tuning import StageBuilder, find_layers
from lightning_s3t.tuning.adapter_effect import check_effect, measure_effect
from lightning_s3t.tuning.adapters import resolve_adapter
from tests.people import Classifier, People, fit
from tests.serving.shards import make_gpt2


def builder(adapter: Any, network: nn.Module | None = None) -> StageBuilder:
    network = network if network is not None else Classifier().network
    return StageBuilder(network, find_layers(network, slices=2), resolve_adapter(adapter))


def effect(**options: Any) -> dict[str, list[float]]:
    return measure_effect(builder({"peft_type": "LORA", "r": 4, **options}))


def test_the_same_adapter_has_the_same_effect_and_draws_nothing() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = effect(), effect()
    assert first == second
    assert len(first) == 2
    assert all(number != 0 for numbers in first.values() for number in numbers)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [{"lora_alpha": 9}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_another_reading_of_the_options_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(StoreMismatchError, match=r"computes something else than when the store at runs/s3t was made"):
        check_effect(effect(), effect(**options), "runs/s3t")


def test_rounding_is_not_refused_and_a_store_that_knows_nothing_is_not_either() -> None:
    found = effect()
    check_effect({name: [x * (1 + 1e-5) for x in numbers] for name, numbers in found.items()}, found, "runs/s3t")
    check_effect(None, found, "runs/s3t")


def test_layers_of_transformers_are_measured_and_whole_layers_have_no_effect() -> None:
    assert len(measure_effect(builder({"peft_type": "LORA", "r": 2}, make_gpt2()))) == 2
    assert measure_effect(builder(None)) == {}


def test_a_release_of_peft_that_scales_otherwise_is_refused_by_serving_and_by_a_fit(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    fit(store, People.make(), epochs=1)
    EnsembleModule.from_store(store, Classifier())
    own = LoraLinear.forward

    def doubled(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return 2 * own(self, x, *args, **kwargs) - self.base_layer(x)

    monkeypatch.setattr(LoraLinear, "forward", doubled)
    with pytest.raises(StoreMismatchError, match="releases that `s3t store provenance` names"):
        EnsembleModule.from_store(store, Classifier())
    with pytest.raises(StoreMismatchError, match="The adapter of"):
        fit(store, People.make(), epochs=1)
