"""Digests of what objects hold: everything that moves is named, and nothing else."""

from __future__ import annotations

import array
import collections
import copy
import ctypes
import dataclasses
import enum
import functools
import itertools
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from lightning_s3t.engine.found_state.digest import changed, digest_state, find_generators
from tests.tiers import in_tier


class Slotted:
    __slots__ = ("__hidden", "empty", "rng", "seen")

    def __init__(self) -> None:
        self.rng = random.Random(0)
        self.seen: list[int] = []
        self.__hidden = 0

    def count(self) -> None:
        self.__hidden += 1


class Rows(Dataset[Any]):
    def __init__(self, transform: Any = None) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> int:
        return row


class SlottedCallback(pl.Callback):
    __slots__ = ("seen",)

    def __init__(self) -> None:
        self.seen = 0


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.seen: list[int] = []


class Module(pl.LightningModule):
    def __init__(self, lr: float = 0.1, schedule: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


@dataclasses.dataclass
class Inner:
    values: dict[str, float] = dataclasses.field(default_factory=lambda: {"ema": 0.5})


@dataclasses.dataclass
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)


def holder(**attributes: Any) -> Any:
    return types.SimpleNamespace(**attributes)


def collate(rows: Any, rng: Any = None) -> Any:
    return rows


def counting() -> tuple[Callable[[Any], Any], Callable[[], None]]:
    count = 0

    def increase() -> None:
        nonlocal count
        count += 1

    def function(rows: Any) -> Any:
        return rows, count

    return function, increase


def loader(rows: Any) -> dict[str, Any]:
    return {"train_dataloader": DataLoader(rows)}


Case = tuple[dict[str, Any], Callable[[], object], str]


def transform_under_subset() -> Case:
    transform = Slotted()
    rows = Subset(Rows(transform), [0, 1])
    return loader(rows), transform.rng.random, "train_dataloader.dataset.dataset.transform.rng"


def private_slot() -> Case:
    transform = Slotted()
    return {"transform": transform}, transform.count, "transform._Slotted__hidden"


def transform_under_concat() -> Case:
    transform = functools.partial(collate, rng=np.random.default_rng(0))
    rows = ConcatDataset([Rows(transform), Rows()])
    path = "train_dataloader.dataset.datasets[0].transform.keywords['rng']"
    return loader(rows), transform.keywords["rng"].random, path


def bound_method() -> Case:
    class Collator:
        def __init__(self) -> None:
            self.rng = np.random.RandomState(0)

        def __call__(self, rows: Any) -> Any:
            return rows

        def collate(self, rows: Any) -> Any:
            return rows

    collator = Collator()
    return {"collate_fn": collator.collate}, collator.rng.rand, "collate_fn.__self__.rng"


def data_module_attribute() -> Case:
    data = Data()
    return {"data": data}, lambda: setattr(data, "epoch", 1), "data.epoch"


def data_module_list() -> Case:
    data = Data()
    return {"data": data}, lambda: data.seen.append(1), "data.seen"


def hyperparameter() -> Case:
    module = Module()
    return {"module": module}, lambda: module.hparams.update(lr=0.2), "module.hparams['lr']"


def closure() -> Case:
    function, increase = counting()
    return {"collate_fn": function}, increase, "collate_fn closure 'count'"


def slotted_callback() -> Case:
    callback = SlottedCallback()
    name = "callback 1 (SlottedCallback)"
    return {name: callback}, lambda: setattr(callback, "seen", 1), f"{name}.seen"


def in_deque() -> Case:
    seen: collections.deque[Any] = collections.deque([1, 2, {}], maxlen=3)
    return {"data": holder(seen=seen)}, lambda: seen.rotate(1), "data.seen[0]"


def in_plain_deque() -> Case:
    seen = collections.deque([1, 2], maxlen=2)
    return {"data": holder(seen=seen)}, lambda: seen.append(3), "data.seen"


def in_defaultdict() -> Case:
    seen: Any = collections.defaultdict(list, {"a": [1]})
    return {"data": holder(seen=seen)}, lambda: seen["a"].append(2), "data.seen['a']"


def default_factory() -> Case:
    vocabulary: Any = collections.defaultdict(itertools.count().__next__)
    return {"data": vocabulary}, vocabulary.default_factory, "data.default_factory.__self__ at"


def order_of_a_dict() -> Case:
    cache = {"a": 1, "b": 2}
    return {"cache": cache}, lambda: cache.update(a=cache.pop("a")), "cache"


def order_of_an_ordered_dict() -> Case:
    cache = collections.OrderedDict(a=1, b=2)
    return {"cache": cache}, lambda: cache.move_to_end("a"), "cache"


def in_counter() -> Case:
    seen = collections.Counter("ab")
    return {"data": holder(seen=seen)}, lambda: seen.update("a"), "data.seen['a']"


def count() -> Case:
    steps = itertools.count(5)
    return {"data": holder(steps=steps)}, lambda: next(steps), "data.steps at"


def list_iterator() -> Case:
    rows = iter([1, 2, 3])
    return {"rows": rows}, lambda: next(rows), "rows part 2"


def running_generator() -> Case:
    def numbers() -> Iterator[int]:
        step = 0
        while True:
            step += 1
            yield step

    steps = numbers()
    next(steps)
    return {"steps": steps}, lambda: next(steps), "steps local 'step'"


def nested_dataclass() -> Case:
    outer = Outer()
    return {"data": outer}, lambda: outer.inner.values.update(ema=0.6), "data.inner.values['ema']"


def numpy_generator() -> Case:
    rng = np.random.default_rng(0)
    return {"data": [rng]}, rng.random, "data[0]"


def spawning_numpy_generator() -> Case:
    rng = np.random.default_rng(0)
    if not hasattr(rng.bit_generator, "seed_seq"):
        pytest.skip("NumPy's generators say how many they have spawned from 1.25 on")
    return {"data": [rng]}, lambda: rng.bit_generator.seed_seq.spawn(1), "data[0]"


def torch_generator() -> Case:
    generator = torch.Generator()
    return {"data": {3: generator}}, lambda: torch.rand(1, generator=generator), "data[3]"


def generator_in_a_set() -> Case:
    generator = torch.Generator()
    return {"data": {1, "a", generator}}, lambda: torch.rand(1, generator=generator), "data{0}"


def parameter() -> Case:
    module = Module()
    weight: Any = module.network[0].weight
    return {"module": module}, lambda: weight.data.add_(1), "module.network.0.weight"


def buffer() -> Case:
    module = Module()
    mean: Any = module.network[1].running_mean
    return {"module": module}, lambda: mean.add_(1), "module.network.1.running_mean"


def gradient() -> Case:
    module = Module()
    weight: Any = module.network[0].weight
    return {"module": module}, lambda: weight.sum().backward(), "module.network.0.weight.grad"


def hook() -> Case:
    module = Module()
    return {"module": module}, lambda: module.network.register_forward_hook(print), "module.network.forward_hooks[0]"


def attribute_of_a_tensor() -> Case:
    tensor: Any = torch.zeros(1)
    tensor.seen = 0
    return {"tensor": tensor}, lambda: setattr(tensor, "seen", 1), "tensor.seen"


def object_array() -> Case:
    rows = np.array([{"a": 1}, {"a": 2}], dtype=object)
    return {"rows": rows}, lambda: rows[1].update(a=3), "rows[1]['a']"


def number_array() -> Case:
    numbers = array.array("d", [1.0])
    return {"numbers": numbers}, lambda: numbers.append(2.0), "numbers"


def shared_memory() -> Case:
    value = multiprocessing.Value("i", 0)
    return {"step": value}, lambda: setattr(value, "value", 1), "step._obj"


def structure() -> Case:
    number = ctypes.c_int(1)
    return {"number": number}, lambda: setattr(number, "value", 2), "number"


def function_attribute() -> Case:
    function: Any = counting()[0]
    function.calls = 0
    return {"collate_fn": function}, lambda: setattr(function, "calls", 1), "collate_fn.calls"


def default_argument() -> Case:
    def function(rows: Any, cache: Any = {}) -> Any:  # noqa: B006
        return cache.setdefault("a", rows)

    return {"collate_fn": function}, lambda: function(1), "collate_fn.__defaults__[0]['a']"


def default_keyword() -> Case:
    def function(rows: Any, *, cache: Any = [0]) -> Any:  # noqa: B006
        return cache.append(rows)

    return {"collate_fn": function}, lambda: function(1), "collate_fn.__kwdefaults__['cache']"


def cache_of_a_function() -> Case:
    cached = functools.lru_cache(maxsize=None)(abs)
    return {"load": cached}, lambda: cached(-3), "load part 0[-3]"


def list_with_attributes() -> Case:
    class Batches(list):  # type: ignore[type-arg]
        epoch = 0

    batches = Batches([1])
    batches.epoch = 1
    return {"batches": batches}, lambda: setattr(batches, "epoch", 2), "batches.epoch"


def mapping_proxy() -> Case:
    inner = {"a": 1}
    return {"data": types.MappingProxyType(inner)}, lambda: inner.update(a=2), "data part 0['a']"


def which_of_two() -> Case:
    first, second = holder(a=1), holder(a=1)
    data = holder(pool=[first, second], current=None)
    # a shorter way than through the list
    roots = {"first": first, "second": second, "data": data}
    data.current = first
    return roots, lambda: setattr(data, "current", second), "data.current"


CASES = [
    *(transform_under_subset, private_slot, transform_under_concat, bound_method, data_module_attribute),
    *(data_module_list, hyperparameter, closure, slotted_callback, in_deque, in_plain_deque, in_defaultdict),
    *(default_factory, order_of_a_dict, order_of_an_ordered_dict, in_counter, count, list_iterator),
    *(running_generator, nested_dataclass, numpy_generator, spawning_numpy_generator, torch_generator),
    *(generator_in_a_set, parameter, buffer, gradient, hook, attribute_of_a_tensor, object_array, number_array),
    *(shared_memory, structure, function_attribute, default_argument, default_keyword, cache_of_a_function),
    *(list_with_attributes, mapping_proxy, which_of_two),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_moves_is_named(case: Callable[[], Case]) -> None:
    roots, move, path = case()
    before = digest_state(roots)
    assert digest_state(roots) == before
    move()
    after = digest_state(roots)
    assert path in changed(before, after)
    # elements of a deque change places, everything else is one thing
    assert case is in_deque or changed(before, after) == [path]


def everything() -> dict[str, Any]:
    """Make one of each, and sets whose order depends on how strings are hashed."""
    torch.manual_seed(0)
    point = collections.namedtuple("point", "x y")
    colour = enum.Enum("colour", ["red", "blue"])
    roots: dict[str, Any] = {f"case {number}": case()[0] for number, case in enumerate(CASES)}
    roots["sets"] = [{"a", "b", "c", 1, None, (2, "d")}, frozenset(map(str, range(100))), {str: 1, len: 2}]
    roots["set of objects"] = {frozenset({name}) for name in "abcdef"} | {colour.red, colour.blue}
    roots["values"] = [1 + 2j, float("nan"), Path("a"), torch.float32, torch.device("cpu"), np.dtype("i4"), point(1, 2)]
    roots["more"] = [bytearray(b"a"), np.float32(1), range(3), slice(1, 2), Ellipsis, list[int], print, os, 10**5000]
    roots["tensors"] = [torch.zeros(3, dtype=torch.bfloat16), torch.eye(2).to_sparse(), torch.zeros(2, device="meta")]
    return roots


@pytest.mark.nightly
def test_digests_are_the_same_in_another_process() -> None:
    path = Path(__file__)
    script = (
        f"import sys; sys.path.insert(0, {str(path.parent)!r})\nimport test_state_digest as tests, json\n"
        "print(json.dumps(tests.digest_state(tests.everything())))"
    )
    root = path.parents[2]
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]


def test_nothing_moves_when_one_looks() -> None:
    roots = everything()
    before = digest_state(roots)
    global_ones = random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert changed(before, digest_state(roots)) == []
    assert (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()) == global_ones  # type: ignore[index]


def refuse(*arguments: Any, **keywords: Any) -> Any:
    raise AssertionError("code of the user ran")


SPECIAL = ["__repr__", "__str__", "__eq__", "__len__", "__bool__", "__getattr__", "__getattribute__", "__reduce__"]
SPECIAL += ["__reduce_ex__", "__getstate__", "__dir__", "__iter__", "__getitem__", "__contains__", "__copy__", "items"]
SPECIAL += ["__deepcopy__", "__index__", "__int__", "__float__", "__array__", "__fspath__", "__next__", "keys"]


@pytest.mark.parametrize("base", [object, dict, list, tuple, set, collections.OrderedDict, int, str, nn.Module, Rows])
def test_no_code_of_an_object_runs(base: type) -> None:
    armed: Any = type("Armed", (base,), {"__class__": property(refuse), "value": property(refuse)})
    instance = armed()
    attributes = instance.__dict__
    attributes["seen"] = 1
    for name in SPECIAL:
        setattr(armed, name, refuse)
    before = digest_state({"data": instance, "held": [instance]})
    assert "data.seen" in before
    attributes["seen"] = 2
    assert changed(before, digest_state({"data": instance, "held": [instance]})) == ["data.seen"]


def test_a_property_named_like_the_dictionary_of_attributes_is_not_asked() -> None:
    class Odd:
        def __init__(self) -> None:
            self.a = 1

    class Odder(Odd):
        __dict__ = property(refuse)  # type: ignore[assignment]

    assert list(digest_state({"x": Odder()})) == ["x", "x.a"]


def test_what_cannot_be_read_is_there_by_its_type(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        things = [file, threading.Lock(), threading.Thread(), memoryview(b"a"), weakref.ref(file)]
        assert list(digest_state({"data": things})) == ["data", *(f"data[{number}]" for number in range(4))]


def test_trainers_iterators_of_loaders_and_what_the_caller_names_are_left_out() -> None:
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    loader: Any = DataLoader(TensorDataset(torch.zeros(2)))
    loader._iterator = iter(loader)
    other = holder(a=1)
    paths = digest_state({"data": holder(trainer=trainer, other=other, loader=loader)}, ignore=[id(other)])
    assert not any("trainer" in path or "other" in path or "_iterator" in path for path in paths)


def test_what_the_compiler_notes_for_itself_is_left_out_and_the_compiled_module_is_not() -> None:
    module = nn.ModuleDict({"net": torch.compile(nn.Linear(2, 2), backend="eager")})
    before = digest_state({"module": module})
    module["net"](torch.zeros(1, 2))
    # the parameters' own notes go when the compiler is reset
    assert not [path for path in changed(before, digest_state({"module": module})) if "_dynamo" not in path]
    module["net"]._orig_mod.seen = 1
    assert "module.net._orig_mod.seen" in changed(before, digest_state({"module": module}))


def test_a_linked_list_is_walked_to_its_end() -> None:
    class Node:
        next: Any = None

    head = node = Node()
    for _ in range(in_tier(5_000, 100_000)):
        node.next = Node()
        node = node.next
    before = digest_state({"head": head})
    node.next = 1
    assert len(changed(before, digest_state({"head": head}))) == 1
    assert max(map(len, before)) < 400


def test_circles_are_walked_once_and_named() -> None:
    first, second = holder(), holder()
    first.other, second.other = second, first
    assert list(digest_state({"a": first})) == ["a", "a.other", "a.other.other"]


def fastest(function: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize(
    ("make", "seconds"),
    [
        (lambda: list(range(1_000_000)), 2),
        (lambda: [(row, f"person-{row}") for row in range(in_tier(200_000, 1_000_000))], 4),
        (lambda: {f"person-{row}": row for row in range(in_tier(200_000, 1_000_000))}, 4),
        (lambda: torch.zeros(50_000_000), 0.5),
        (lambda: torch.zeros(2, 25_000_000).t(), 0.5),
        (lambda: np.zeros(25_000_000), 0.5),
    ],
    ids=["ints", "tuples", "dict", "tensor", "transposed", "array"],
)
def test_large_containers_are_one_fast_digest(make: Callable[[], Any], seconds: float) -> None:
    roots = {"data": holder(rows=make())}
    assert list(digest_state(roots)) == ["data", "data.rows"]
    assert fastest(lambda: digest_state(roots)) < seconds


def test_a_generator_among_very_many_elements_has_its_path_and_is_found() -> None:
    generator = torch.Generator()
    rows: list[Any] = [*range(200_000), Inner(), generator]
    before = digest_state({"rows": rows})
    torch.rand(1, generator=generator)
    assert changed(before, digest_state({"rows": rows})) == ["rows[200001]"]
    assert find_generators({"rows": rows}) == {"rows[200001]": generator}


def test_of_a_large_tensor_the_first_the_last_and_every_column_are_looked_at() -> None:
    tensor = torch.zeros(4096, 768)
    before = digest_state({"x": tensor})
    for index in [(0, 0), (-1, -1), (slice(None), 1), (slice(None), 767)]:
        other = tensor.clone()
        other[index] = 1
        assert changed(before, digest_state({"x": other})) == ["x"]


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int8, torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128]
)
@pytest.mark.parametrize("size", [0, 3, 3_000_000])
def test_tensors_of_all_types_and_sizes_can_be_read(dtype: torch.dtype, size: int) -> None:
    tensor = torch.zeros(size, dtype=dtype)
    before = digest_state({"x": tensor, "conj": tensor.conj()})
    assert len(before) == 2 or dtype not in (torch.complex64, torch.complex128)
    if size:
        tensor[-1] = 1
        assert "x" in changed(before, digest_state({"x": tensor, "conj": tensor.conj()}))


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(lambda a, b: holder(a=a, b=b), inner, inner)
    ),
    max_leaves=12,
)


@given(VALUES)
@settings(deadline=None, max_examples=100)
def test_equal_objects_have_equal_digests(value: Any) -> None:
    assert digest_state({"x": value}) == digest_state({"x": copy.deepcopy(value)})


@given(st.sets(st.text() | st.integers() | st.tuples(st.integers(), st.text())), st.randoms())
@settings(deadline=None, max_examples=50)
def test_the_order_of_a_set_does_not_count(values: set[Any], shuffler: random.Random) -> None:
    others = list(values)
    shuffler.shuffle(others)
    assert digest_state({"x": values}) == digest_state({"x": set(others)})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (*(1, True),),
        (*(1, 1.0),),
        (*(0.0, -0.0),),
        ("1", b"1"),
        ([1], (1,)),
        ({1}, frozenset({1})),
        (torch.zeros(1), torch.zeros(1, 1)),
        (torch.zeros(1), np.zeros(1, np.float32)),
        ([[]], []),
        (len, abs),
        (lambda: 1, lambda: 2),
        (Slotted, Rows),
    ],
)
def test_different_values_and_types_have_different_digests(first: Any, second: Any) -> None:
    assert digest_state({"x": first}) != digest_state({"x": second})


def test_a_path_that_changed_only_by_its_parts_is_left_out() -> None:
    data = holder(cache={"a": holder(x=1)}, best=None)
    before = digest_state({"data": data})
    data.cache["b"] = holder(x=2)
    assert changed(before, digest_state({"data": data})) == ["data.cache['b'].x"]
    assert changed({"a": "1", "a.grad": "1"}, {"a": "2"}) == ["a", "a.grad"]
    assert changed({"rng": "1"}, {"rngs.a": "1"}) == ["rng", "rngs.a"]


def test_small_containers_and_objects_are_named_by_attribute() -> None:
    paths = digest_state({"x": {"lr": 0.1, 2: None, (1, "a"): 1, "k" * 100: 2, str: 3}})
    assert {"x['lr']", "x[2]", "x[(1, 'a')]", "x[key <type 4>]", "x[<type 4>]"} < set(paths)
    many = digest_state({"x": {str(number): number for number in range(2000)}})
    assert list(many) == ["x"]


def test_generators_are_found_wherever_they_are_and_the_global_ones_left_out() -> None:
    function, _ = counting()
    function.rng = np.random.default_rng(0)  # type: ignore[attr-defined]
    slotted = Slotted()
    roots = {"dataset": Subset(Rows(slotted), [0]), "collate_fn": functools.partial(function, slotted)}
    assert list(find_generators(roots)) == ["collate_fn.func.rng", "dataset.dataset.transform.rng"]
    assert find_generators({"f": [random.random, np.random.rand, torch.default_generator]}) == {}


@pytest.mark.parametrize("compiled", ["module", "function", "in place"])
def test_what_is_compiled_again_has_not_moved(compiled: str) -> None:
    def make() -> Any:
        module: Any = nn.Linear(2, 2)
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
        if compiled == "module":
            return holder(network=torch.compile(module, backend="eager"))
        if compiled == "function":
            return holder(step=torch.compile(collate, backend="eager"))
        module.compile(backend="eager")
        return holder(network=module)

    first, second = make(), make()
    assert changed(*(digest_state({"it": found}) for found in (first, second))) == []
