"""The page that lists models says what is found in them today."""

from __future__ import annotations

import pytest
import transformers

from docs.list_models import ABOUT_ADAPTERS, ADAPTERS, FAMILIES, INTRODUCTION, PAGE, SLICES, adapters_row, layers_row

LINES = PAGE.read_text(encoding="utf-8").splitlines()


def rows_of_table(number: int) -> dict[str, list[str]]:
    """The cells of a table of the page, by the model's name."""
    tables: list[dict[str, list[str]]] = []
    for line in LINES:
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| model |"):
            tables.append({})
        elif line.startswith("| ") and not line.startswith("| ---"):
            tables[-1][cells[0]] = cells[1:]
    return tables[number]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_groups_and_the_head_of_each_family_are_those_that_are_found(name: str) -> None:
    *groups, head = rows_of_table(0)[name]
    assert len(groups) == SLICES
    assert all("`" in cell for cell in (*groups, head))
    if name == "transformers ViT" and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("The page is written with transformers 5, which has another path to the blocks of its ViT.")
    assert layers_row(name) in LINES


@pytest.mark.parametrize(
    "name", ["timm `resnet18`", "transformers GPT-2", "a hand-written module", "torchvision `VisionTransformer`"]
)
def test_adapters_go_where_the_page_says(name: str) -> None:
    assert adapters_row(name) in LINES


def test_an_adapter_that_is_never_called_is_named() -> None:
    assert "without `qkv`" in rows_of_table(1)["timm `beit_base_patch16_224`"][0]
    assert adapters_row("timm `beit_base_patch16_224`") in LINES


def test_the_page_lists_every_family_and_every_family_takes_an_adapter() -> None:
    assert list(rows_of_table(0)) == list(rows_of_table(1)) == list(FAMILIES)
    for cells in rows_of_table(1).values():
        assert len(cells) == len(ADAPTERS)
        assert cells[0] != "-"
        assert cells[-1] != "-"


def test_the_words_of_the_page_are_the_script_s() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.startswith(INTRODUCTION)
    assert ABOUT_ADAPTERS in text
