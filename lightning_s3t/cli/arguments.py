"""A command line from typed functions: their signatures are the arguments, their docstrings the help.

jsonargparse's `auto_cli` does the same for configurations, but writes a list of subjects as `'["a","b"]'` and a flag as
`--quick true`; a person at a terminal writes `s3t forget runs/s3t a b` and `s3t demo --quick`.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import shtab

Verb = Callable[..., int | None]


def make_parser(
    verbs: Mapping[str, Verb], program: str, description: str, others: Mapping[str, str] | None = None
) -> argparse.ArgumentParser:
    """Makes a parser with a subcommand for each function.

    Parameters without a default are positional, or required options if they are keyword-only; booleans are flags; lists
    take several values; literals are choices.

    Args:
        verbs: Functions by name, with Google docstrings.
        program: The program's name.
        description: What it is for.
        others: Verbs that somebody else parses, with what they do, for the help.

    Example:
        >>> def greet(names: list[str], loud: bool = False) -> None:
        ...     '''Greet people.
        ...
        ...     Args:
        ...         names: Who.
        ...         loud: Shout.
        ...     '''
        >>> parser = make_parser({"greet": greet}, "hello", "Says hello.")
        >>> parser.parse_args(["greet", "Ann", "Bob", "--loud"]).names
        ['Ann', 'Bob']
    """
    parser = argparse.ArgumentParser(program, description=description)
    shtab.add_argument_to(parser, ["--print-completion"], help="Print a completion script for this shell.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in (others or {}).items():
        subparsers.add_parser(name, help=summary, add_help=False)
    for name, verb in verbs.items():
        text = docstring_parser.parse(inspect.getdoc(verb) or "", docstring_parser.DocstringStyle.GOOGLE)
        summary = text.short_description or ""
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        subparser.set_defaults(_verb=verb)
        helps = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in text.params}
        hints = get_type_hints(verb)
        for parameter in inspect.signature(verb).parameters.values():
            _add(subparser, parameter, hints[parameter.name], helps.get(parameter.name, ""))
    return parser


def run_verb(arguments: argparse.Namespace) -> int:
    """Calls the function that the parsed arguments are for.

    Args:
        arguments: What the parser of `make_parser` gave.

    Returns:
        The exit code: what the function returned, 0 for None.
    """
    values = vars(arguments).copy()
    values.pop("print_completion", None)  # an option of the parser, and of no verb
    return values.pop("_verb")(**values) or 0


def _add(parser: argparse.ArgumentParser, parameter: inspect.Parameter, hint: Any, text: str) -> None:
    required = parameter.default is inspect.Parameter.empty
    positional = required and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    name = parameter.name if positional else f"--{parameter.name.replace('_', '-')}"
    text = text.replace("%", "%%")
    if hint is bool:
        parser.add_argument(name, action="store_true", help=text)
        return
    if get_origin(hint) in (Union, UnionType):  # of an optional type, the type
        hint = next((kind for kind in get_args(hint) if kind is not type(None)), hint)
    options: dict[str, Any] = {"type": hint, "help": text}
    if get_origin(hint) is list:
        hint = get_args(hint)[0]
        options.update(type=hint, nargs="+")
    if get_origin(hint) is Literal:
        options.update(type=str, choices=get_args(hint))
    elif not positional:
        options["metavar"] = parameter.name.upper()
    if required and not positional:
        options["required"] = True
    if not required:
        options["default"] = parameter.default
        shown = parameter.default
        shown = " ".join(map(str, shown)) if isinstance(shown, (list, tuple)) else shown
        options["help"] += f" Default: {shown}." if shown is not None else ""
    parser.add_argument(name, **options)
