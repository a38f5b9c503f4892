"""Addresses in a study file: which trackers exist, and where credentials must not stand. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from dit.errors import ConfigError

SQLITE = "sqlite:///"
WEB = ("http", "https")
DATABASES = ("postgresql", "mysql", "mssql")
"""Database servers that MLflow's client can open; the scheme may name a driver, such as `postgresql+psycopg`."""

_USER_INFORMATION = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]*@", re.IGNORECASE)


def refuse_user_information(tree: Any) -> None:
    """Look through the values of a study.

    Raises ConfigError for an address with a user or a password: it would get into logs, reports and process lists.
    """
    for key, text in _texts(tree, "", set()):
        if _USER_INFORMATION.search(text):
            variables = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if "tracking" in key else "AWS_PROFILE"
            raise ConfigError(
                f"{key}: its address has a user or a password, which would get into logs and reports;"
                f" remove it, and set {variables} in the environment"
            )


def tracking_address(uri: str) -> str:
    """The address of a tracker with its scheme in lower case.

    Raises ValueError, with what to give instead, for an address with which MLflow cannot work.
    """
    scheme, colon, rest = uri.partition(":")
    scheme = scheme.lower()
    if scheme == "sqlite":
        path = rest.lstrip("/").partition("?")[0].replace(":memory:", "")
        if not path or not rest.startswith("///"):
            raise ValueError(f"names no file; give {SQLITE}{path or 'path/mlflow.db'}, with three slashes")
    elif scheme in WEB:
        if not urlsplit(uri).hostname:
            raise ValueError("names no host; give http://host:port")
    elif scheme != "databricks" and scheme.partition("+")[0] not in DATABASES:
        if re.match(r"^[\w.-]+:\d+(/|$)|^\[[0-9a-fA-F:]+\]", uri):
            raise ValueError(f"has no scheme; give http://{uri}")
        if not colon or scheme == "file" or "/" in scheme:
            raise ValueError("MLflow no longer supports folders; give sqlite:///path/mlflow.db or http://host:port")
        raise ValueError(f"has the unknown scheme {scheme!r}; give http://host:port, https://host or sqlite:///path")
    return scheme + colon + rest


def same_origin(one: str, other: str) -> bool:
    """Whether two addresses name the same scheme, host and port, so that one's credentials are meant for the other."""
    return _origin(one) == _origin(other)


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _texts(node: Any, key: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Every text in a tree of a YAML file, with its key; aliases make the tree a graph."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict | list) and id(node) not in seen:
        seen.add(id(node))
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _texts(value, f"{key}.{name}" if key else str(name), seen)
