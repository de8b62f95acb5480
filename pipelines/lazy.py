"""What a package exports is imported once it is asked for, so that `import pipelines` is cheap and `vfm --help` loads no Ray.

`pipelines.process` and `pipelines.search` are packages and, to a user, functions. Python gives a package's name to the package
whenever any of its modules is imported, so the function can't have it; instead the package itself can be called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


def lazy_exports(package: str, modules: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (PEP 562). modules: of each exported name, the module that has it."""

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return get, lambda: sorted({*vars(sys.modules[package]), *modules})


class CallablePackage(ModuleType):
    """A package that is named after the function which it is for: calling the package calls that."""

    @property
    def __signature__(self) -> Signature:
        return signature(self._function)

    @property
    def _function(self) -> Callable[..., Any]:
        return getattr(self, self.__name__.rpartition(".")[2])

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        return import_module, (self.__name__,)  # as Ray sends a module that a user's function refers to: by its name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See the function of the package's own name."""
        return self._function(*args, **kwargs)


def make_callable(package: str) -> None:
    """Lets a package be called, as the function of its own name."""
    sys.modules[package].__class__ = CallablePackage
