"""Addresses of trackers in a study file. Torch-free."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from dit.study.fields import SecretError

SQLITE = "sqlite:///"
WEB = ("http", "https")
DATABASES = ("postgresql", "mysql", "mssql")
"""Database servers that MLflow's client can open; the scheme may name a driver, such as `postgresql+psycopg`."""


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
        _require_host(uri)
    elif scheme != "databricks" and scheme.partition("+")[0] not in DATABASES:
        if re.match(r"^[\w.-]+:\d+(/|$)|^\[[0-9a-fA-F:]+\]", uri):
            raise ValueError(f"has no scheme; give http://{uri}")
        if not colon or scheme == "file" or "/" in scheme:
            raise ValueError("MLflow no longer supports folders; give sqlite:///path/mlflow.db or http://host:port")
        raise ValueError(f"has the unknown scheme {scheme!r}; give http://host:port, https://host or sqlite:///path")
    return scheme + colon + rest


def _require_host(uri: str) -> None:
    if found := re.search("[@?#]", re.sub("^[^/?#]*", "", uri.partition("://")[2])):
        raise SecretError(f"has a {found[0]!r} after its host, as a password may have; give http://host:port/path")
    try:
        parts = urlsplit(uri)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError(f"is no address ({error}); give http://host:port") from None
    if not named:
        raise ValueError("names no host; give http://host:port")


def same_origin(one: str, other: str) -> bool:
    """Whether two addresses name the same scheme, host and port, so that one's credentials are meant for the other."""
    return _origin(one) == _origin(other)


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
