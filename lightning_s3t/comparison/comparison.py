"""A comparison of unlearning methods, as a document, as tables and as a picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lightning_s3t.comparison.picture import draw
from lightning_s3t.comparison.results import MethodResult, Setting, overtaken
from lightning_s3t.comparison.tables import markdown, plain
from lightning_s3t.core.documents import STRICT, json_schema, read_json
from lightning_s3t.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1


@dataclass(frozen=True)
class Comparison:
    """Methods that were given the same model, data, requests and seeds.

    Attributes:
        setting: Their common setting.
        methods: The results; the first is the reference, a training from scratch on the retained rows.
    """

    __pydantic_config__ = STRICT

    setting: Setting
    methods: tuple[MethodResult, ...]

    def __getitem__(self, label: str) -> MethodResult:
        """Return the result of a method.

        Args:
            label: Its label in the comparison.

        Raises:
            ConfigurationError: It is not among them.
        """
        found = {result.label: result for result in self.methods}
        if label not in found:
            raise ConfigurationError(
                f"There is no method {label!r} in the comparison. Expected one of {', '.join(found)}."
            )
        return found[label]

    def overtaken(self, label: str) -> dict[str, int]:
        """Return the numbers of requests after which others stay ahead of a method, in accuracy on test rows.

        Intervals of the differences are not considered, and only measured points count.

        Args:
            label: The method.

        Returns:
            The methods that end ahead of it, with the first number of requests from which on they are ahead.
        """
        return overtaken(self.methods, self[label].label)

    def to_json(self) -> str:
        """Return the comparison as a JSON document (schema: docs/comparison.schema.json)."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Read the output of `to_json`.

        Args:
            text: A JSON document.

        Raises:
            ConfigurationError: It is not a comparison.
        """
        try:
            data: Any = json.loads(text)
            if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
                raise ValueError(f"expected an object of format {FORMAT}")
            return read_json(cls, json.dumps(data))
        except ValueError as error:
            raise ConfigurationError(
                f"The document is not a comparison: {error}. Expected the output of Comparison.to_json."
            ) from error

    def to_markdown(self) -> str:
        """Return the tables, in Markdown."""
        return markdown(self.setting, self.methods)

    def __str__(self) -> str:
        return plain(self.setting, self.methods)

    def plot(self) -> Figure:
        """Draw accuracy over requests, and the attack on forgotten rows.

        Returns:
            The figure; `figure.savefig(path)` writes it.
        """
        return draw(self.setting, self.methods)


def comparison_schema() -> dict[str, Any]:
    """Return the JSON schema of a comparison's document, which docs/comparison.schema.json holds a copy of."""
    schema = json_schema(Comparison)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Comparison of unlearning methods",
        "properties": {
            "format": {"const": FORMAT, "description": "The version of this schema."},
            **schema["properties"],
        },
        "required": ["format", *schema["required"]],
    }
