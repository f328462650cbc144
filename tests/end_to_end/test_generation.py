"""Language models: the ensemble generates token by token, with a cache for each shard."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_s3t import EnsembleModule
from lightning_s3t.errors import EnsembleError, RevokedError
from lightning_s3t.serving.caches import ShardCaches
from lightning_s3t.store import Store
from tests.end_to_end.tiny_models import LORA, TINY, Rows
from tests.people import Classifier, People, fit, make_trainer
from tests.tiers import nightly_except

PROMPT = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(7))
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**TINY, eos_token_id=None),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=16, n_layer=4, n_head=2, vocab_size=60, tie_word_embeddings=False, eos_token_id=None
    ),
}


class LanguageModel(pl.LightningModule):
    """A transformers language model, as people wrap them."""

    inputs = torch.randint(3, 60, (60, 6), generator=torch.Generator().manual_seed(0))

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.network(input_ids=batch["inputs"], labels=batch["inputs"]).loss
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


@pytest.fixture(scope="module", params=nightly_except(CONFIGS, "llama"))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    store = tmp_path_factory.mktemp("generation") / "store"
    module = LanguageModel(request.param)
    loader = DataLoader(Rows(module.inputs), 4, shuffle=True, drop_last=True)
    make_trainer(store, epochs=2, adapter=LORA).fit(module, train_dataloaders=loader)
    return store, request.param


@pytest.fixture
def served(trained: tuple[Path, str], tmp_path: Path) -> EnsembleModule:
    store = shutil.copytree(trained[0], tmp_path / "store")
    return EnsembleModule.from_store(store, LanguageModel(trained[1]))


def by_hand(served: EnsembleModule, tokens: int) -> Tensor:
    """Read the whole text for every token, without any cache."""
    text = PROMPT
    for _ in range(tokens):
        logits = served.module.network(input_ids=text, use_cache=False).logits
        text = torch.cat([text, logits[:, -1:].argmax(-1)], dim=1)
    return text


def generate(served: EnsembleModule, **arguments: Any) -> Tensor:
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **arguments}
    found: Tensor = served.generate(PROMPT, **options)
    return found


@torch.no_grad()
def test_it_generates_what_reading_the_whole_text_each_time_gives(served: EnsembleModule) -> None:
    assert len(served.survivors) == 2
    assert torch.equal(generate(served), by_hand(served, 8))


def test_shards_differ_and_each_has_its_part_in_the_text(served: EnsembleModule) -> None:
    both = generate(served)
    served.aggregate = "single"
    assert not torch.equal(generate(served, max_new_tokens=30), both)


@pytest.mark.parametrize("arguments", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beam_search_reorders_every_shards_cache(served: EnsembleModule, arguments: dict[str, Any]) -> None:
    assert torch.equal(generate(served, **arguments), generate(served, use_cache=False, **arguments))


def test_the_networks_own_generate_gives_the_ensembles_text_too(served: EnsembleModule) -> None:
    text = served.network.generate(PROMPT, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(text, generate(served))


class ForgetAt(transformers.StoppingCriteria):
    """A request from another process while a text is generated."""

    def __init__(self, path: Path, length: int) -> None:
        self.path, self.length = path, length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        if input_ids.shape[1] == self.length:
            with Store.open(self.path) as store:
                store.forget(["user-3"])
        return torch.zeros(len(input_ids), dtype=torch.bool)


@torch.no_grad()
def test_a_request_meanwhile_begins_the_text_again_with_the_survivors(served: EnsembleModule) -> None:
    before = by_hand(served, 8)
    criteria = transformers.StoppingCriteriaList([ForgetAt(served.store.path, 9)])
    during = generate(served, stopping_criteria=criteria)
    assert served.store.request_number >= 1
    assert torch.equal(during, by_hand(served, 8))
    assert not torch.equal(during, before)


def test_a_cache_from_before_a_request_is_refused(served: EnsembleModule) -> None:
    cache = transformers.DynamicCache()
    served.module.network(input_ids=PROMPT, past_key_values=cache)
    served.store.forget(["user-3"])
    with pytest.raises(RevokedError, match="may hold forgotten data"):
        served.module.network(input_ids=PROMPT[:, -1:], past_key_values=cache)


def test_a_cache_that_another_model_has_filled_is_refused(served: EnsembleModule, trained: tuple[Path, str]) -> None:
    cache = transformers.DynamicCache()
    LanguageModel(trained[1]).network(input_ids=PROMPT, past_key_values=cache)
    with pytest.raises(EnsembleError, match="did not fill itself"):
        served.module.network(input_ids=PROMPT, past_key_values=cache)


@torch.no_grad()
def test_a_single_survivor_answers_for_the_cost_of_one(served: EnsembleModule) -> None:
    served.aggregate = "single"
    calls: list[int] = []
    stem = next(m for m in served.module.network.modules() if isinstance(m, torch.nn.Embedding))
    stem.register_forward_hook(lambda *_: calls.append(1))
    served.module.network(input_ids=PROMPT)
    assert len(calls) == 1
    served.aggregate = "mean_logits"
    served.module.network(input_ids=PROMPT)
    assert len(calls) == 3


def test_the_single_survivor_is_the_deepest(served: EnsembleModule) -> None:
    served.aggregate = "single"
    with Store.open(served.store.path) as store:
        shard = store.partition.place("user-3").shard
        store.forget(["user-3"])
    served.module.network(input_ids=PROMPT)
    assert list(served._keys_in_use()) == [1 - shard]


def test_what_cannot_generate_says_so(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), epochs=1)
    with pytest.raises(EnsembleError, match="can generate"):
        EnsembleModule.from_store(tmp_path / "store", Classifier()).generate()


def test_what_the_shards_have_read_is_let_go_with_the_callers_cache(served: EnsembleModule) -> None:
    given = transformers.DynamicCache()
    with torch.no_grad():
        served.module.network(input_ids=PROMPT, past_key_values=given)
    other = weakref.ref(next(iter(ShardCaches.of(given).others.values())))
    assert other() is not None
    del given
    assert other() is None
