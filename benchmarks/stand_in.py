"""Enough of ml_collections to read a configuration where it is not installed."""

import sys
import types
from collections.abc import ItemsView, Mapping
from typing import Any


class ConfigDict:
    """Fields by name or by key; nested."""

    def __init__(self, values: Mapping[str, Any] = types.MappingProxyType({})):
        for name, value in values.items():
            setattr(self, name, ConfigDict(value) if isinstance(value, Mapping) else value)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __contains__(self, name: object) -> bool:
        return name in vars(self)

    def items(self) -> ItemsView[str, Any]:
        """Names and values."""
        return vars(self).items()

    def to_dict(self) -> dict[str, Any]:
        """As nested dicts."""
        plain = lambda value: value.to_dict() if isinstance(value, ConfigDict) else value
        return {name: plain(value) for name, value in self.items()}


def install() -> None:
    """Takes the place of ml_collections, if that is missing."""
    try:
        import ml_collections  # noqa: F401
    except ImportError:
        module = types.ModuleType("ml_collections")
        module.ConfigDict = module.FrozenConfigDict = ConfigDict
        sys.modules["ml_collections"] = module
