"""Caches of generation are compared with reading the whole text, and are not used where the two differ."""

from __future__ import annotations

import copy
import inspect
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.data import DataLoader

import lightning_s3t.serving.predictor
from lightning_s3t import EnsembleModule
from lightning_s3t.errors import EnsembleError
from lightning_s3t.serving.caches import caches_in, caches_of_shards
from lightning_s3t.store import Store
from tests.end_to_end.test_generation import PROMPT, LanguageModel, by_hand, generate
from tests.end_to_end.tiny_models import LORA, Rows
from tests.people import make_trainer
from tests.tiers import nightly_except

WARNING = "generates without key-value caches"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("checks") / "store"
    module = LanguageModel("llama")
    loader = DataLoader(Rows(module.inputs), 4, shuffle=True, drop_last=True)
    make_trainer(store, epochs=2, adapter=LORA).fit(module, train_dataloaders=loader)
    return store


@pytest.fixture
def served(trained: Path, tmp_path: Path) -> EnsembleModule:
    return EnsembleModule.from_store(shutil.copytree(trained, tmp_path / "store"), LanguageModel("llama"))


def break_recognition(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of transformers whose caches are not told as such any more."""
    for module in ("caches", "cache_checks", "aggregation"):
        monkeypatch.setattr(f"lightning_s3t.serving.{module}.is_cache", lambda value: False)


def break_separation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches that the shards fill one over the other."""

    def shared(cache: Any, keys: Any) -> dict[int, Any]:
        return dict.fromkeys(caches_of_shards(cache, keys), cache)

    monkeypatch.setattr(lightning_s3t.serving.predictor, "caches_of_shards", shared)
    monkeypatch.setattr("lightning_s3t.serving.caches.ShardCaches.settle", lambda self, cache: None)


@pytest.mark.parametrize("planted", nightly_except([break_recognition, break_separation], break_separation))
@pytest.mark.parametrize("arguments", nightly_except([{}, {"num_beams": 2}], {"num_beams": 2}), ids=str)
def test_caches_that_are_wrong_are_not_used_and_a_warning_says_so(
    served: EnsembleModule, monkeypatch: pytest.MonkeyPatch, planted: Any, arguments: dict[str, Any]
) -> None:
    expected = generate(served, use_cache=False, **arguments)
    planted(monkeypatch)
    with pytest.warns(UserWarning, match=WARNING):
        assert torch.equal(generate(served, **arguments), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it is said once
        assert torch.equal(generate(served, **arguments), expected)


@pytest.mark.parametrize("config", [False, True], ids=["arguments", "config"])
def test_settings_are_not_given_beside_a_generation_config(
    served: EnsembleModule, monkeypatch: pytest.MonkeyPatch, config: bool
) -> None:
    """transformers warns of both, and will refuse them."""
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    arguments = {"generation_config": transformers.GenerationConfig(**settings)} if config else settings
    expected = served.generate(PROMPT, **arguments)
    messages: list[str] = []
    monkeypatch.setattr(logging.Logger, "warning_once", lambda _, text, *__: messages.append(text))
    again = EnsembleModule.from_store(served.store.path, LanguageModel("llama"))
    assert torch.equal(again.generate(PROMPT, **arguments), expected)
    assert not [text for text in messages if "generation_config" in text]


def test_caches_that_are_right_are_used(served: EnsembleModule) -> None:
    lengths: list[int] = []
    stem = served.network.get_input_embeddings()
    generate(served)
    stem.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    generate(served)
    assert set(lengths) == {PROMPT.shape[1], 1}


def test_a_form_is_tried_once(served: EnsembleModule) -> None:
    calls: list[int] = []
    served.network.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    generate(served)
    first, calls[:] = len(calls), []
    generate(served)
    again, calls[:] = len(calls), []
    generate(served, num_beams=2)
    assert again == 2 * 8
    assert first > again
    assert len(calls) > again


def test_a_trial_draws_no_random_numbers_and_tells_no_streamer(served: EnsembleModule) -> None:
    class Streamer(transformers.generation.BaseStreamer):
        def __init__(self) -> None:
            self.heard: list[int] = []

        def put(self, value: Tensor) -> None:
            self.heard += value.flatten().tolist()

        def end(self) -> None:
            self.heard.append(-1)

    texts, streamers = [], [Streamer(), Streamer()]
    for streamer in streamers:
        torch.manual_seed(3)
        options = {"max_new_tokens": 8, "do_sample": True, "pad_token_id": 0, "streamer": streamer}
        texts.append(served.generate(PROMPT[:1], **options))
    assert torch.equal(texts[0], texts[1])
    assert streamers[0].heard == streamers[1].heard == [*texts[0][0].tolist(), -1]


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{"cache_implementation": "static"}, {"max_new_tokens": 1}], ids=str)
def test_other_caches_and_short_texts(served: EnsembleModule, arguments: dict[str, Any]) -> None:
    tokens = arguments.get("max_new_tokens", 8)
    for _ in range(2):  # transformers keeps a static cache, and empties it for the next text
        assert torch.equal(generate(served, **arguments), by_hand(served, tokens))
    with Store.open(served.store.path) as store:
        store.forget(["user-3"])
    assert torch.equal(generate(served, **arguments), by_hand(served, tokens))


@torch.no_grad()
def test_guessing_ahead_gives_the_same_text(served: EnsembleModule) -> None:
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": 1}
    plain = served.generate(PROMPT[:1], **options)
    assert torch.equal(served.generate(PROMPT[:1], prompt_lookup_num_tokens=2, **options), plain)


def test_guessing_ahead_is_refused_where_caches_are_wrong(
    served: EnsembleModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_separation(monkeypatch)
    with pytest.raises(EnsembleError, match="Assisted generation needs key-value caches"):
        served.generate(PROMPT[:1], max_new_tokens=8, do_sample=False, pad_token_id=0, prompt_lookup_num_tokens=2)


def test_a_callers_own_mistake_is_raised_as_it_is(served: EnsembleModule) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(ValueError, match="no_such_argument"):
            generate(served, no_such_argument=1)


class Loop:
    """Generates by hand, token by token: the way that tutorials show."""

    def __init__(self, served: EnsembleModule) -> None:
        self.network = served.module.network
        names = inspect.signature(type(self.network).forward).parameters
        self.argument = "cache" if "cache" in names else "past_key_values"

    def read_on(self, text: Tensor, cache: Any, tokens: int) -> Tensor:
        """Go on with a text of which the cache holds nothing, or all but the last token."""
        new = text[:, cache.get_seq_length() :] if cache is not None else text
        for _ in range(tokens):
            answer = self.network(input_ids=new, **({self.argument: cache} if cache is not None else {}))
            (cache,) = caches_in(answer)
            new = answer.logits[:, -1:].argmax(-1)
            text = torch.cat([text, new], dim=1)
        return text


@torch.no_grad()
@pytest.mark.parametrize("make", [transformers.DynamicCache, lambda: None], ids=["the caller's", "the network's"])
def test_loops_by_hand_read_on_with_every_shards_cache(served: EnsembleModule, make: Any) -> None:
    for _ in range(2):
        assert torch.equal(Loop(served).read_on(PROMPT, make(), 8), by_hand(served, 8))


@torch.no_grad()
def test_a_copy_of_a_cache_has_every_shards_part(served: EnsembleModule) -> None:
    cache = transformers.DynamicCache()
    loop = Loop(served)
    begun = loop.read_on(PROMPT, cache, 1)
    for _ in range(2):  # one prefix, read on more than once
        assert torch.equal(loop.read_on(begun, copy.deepcopy(cache), 7), by_hand(served, 8))
    assert cache.get_seq_length() == PROMPT.shape[1]


@torch.no_grad()
def test_a_loop_by_hand_whose_caches_are_wrong_is_refused(
    served: EnsembleModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_separation(monkeypatch)
    with pytest.raises(EnsembleError, match=r"output differs from that for the whole text"):
        Loop(served).read_on(PROMPT, transformers.DynamicCache(), 3)


@torch.no_grad()
def test_a_cache_that_was_changed_from_outside_is_refused(served: EnsembleModule) -> None:
    cache, loop = transformers.DynamicCache(), Loop(served)
    begun = loop.read_on(PROMPT, cache, 1)
    cache.layers[0].keys = cache.layers[0].keys + 1
    with pytest.raises(EnsembleError, match="changed directly"):
        loop.read_on(begun, cache, 1)


def test_an_unknown_kind_of_cache_is_refused(served: EnsembleModule, monkeypatch: pytest.MonkeyPatch) -> None:
    break_recognition(monkeypatch)
    with pytest.raises(EnsembleError, match="carries an object of DynamicCache from one call to the next"):
        Loop(served).network(input_ids=PROMPT, **{Loop(served).argument: transformers.DynamicCache()})
