"""Settings that are a pydantic model, as options of a command: each field is told once, for Python, recipes, HTTP and here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from pydantic import BaseModel


def with_options_of(
    model: type[BaseModel], goes_with: str, without: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command an option for each field of a model, but for some; they arrive in its `**keywords`.

    goes_with: the option that they belong to, for the help. Bounds are the model's to check.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[field.annotation, typer.Option(help=f"{field.description} With {goes_with}.")],
            )
            for name, field in model.model_fields.items()
            if name not in without
        ]
        setattr(command, "__signature__", signature.replace(parameters=[*own, *options]))  # noqa: B010
        return command

    return add
