"""Errors of S3 and of the connection to it as one line each: what, where, what to do. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    HTTPClientError,
    InvalidConfigError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from s3transfer.exceptions import RetriesExceededError
from urllib3.exceptions import HTTPError as TransportError

from dit.errors import DitError, InputError, MissingError, StoreError, one_line, root_cause

_NO_OBJECT = {"NoSuchKey", "404", "NotFound"}
_REFUSED = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
}
_DENIED = {"AccessDenied", "AllAccessDisabled", "403", "Forbidden"}
_NO_KEYS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
    ProfileNotFound,
    InvalidConfigError,
)
_SET_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_SET_ENDPOINT = "check AWS_ENDPOINT_URL_S3, the server and the network"


@contextmanager
def s3_errors(where: str, *, opening: bool = False) -> Iterator[None]:
    """Turn errors of boto3 into a DitError that names the address.

    While a store is being opened (`opening`), a mistake of the user is an InputError, and a missing bucket a
    MissingError. Later both are a StoreError, and MissingError means a missing object.
    """
    try:
        yield
    except (ClientError, BotoCoreError, RetriesExceededError, TransportError) as error:
        raise _translated(error, where, opening) from error


def endpoint() -> str | None:
    """The S3 endpoint from the environment; None for Amazon's own or one from a profile."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _translated(error: Exception, where: str, opening: bool) -> DitError:
    if isinstance(error, RetriesExceededError):
        error = error.last_exception
    if isinstance(error, ClientError):
        return _answered(error, f"{where} at {endpoint() or 'AWS'}", opening)
    target = f"{where} at {_address(error)}"
    user_error = InputError if opening else StoreError
    if isinstance(error, _NO_KEYS):
        return user_error(f"{target}: no usable credentials ({_line(error)}); {_SET_KEYS}")
    if isinstance(error, ParamValidationError):
        return user_error(f"{where}: {_line(error).removeprefix('Parameter validation failed: ')}; correct the address")
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
        return StoreError(f"{target}: no answer; {_SET_ENDPOINT}")
    if isinstance(error, HTTPClientError | BotoConnectionError | TransportError):
        return StoreError(f"{target}: cannot be reached ({_cause(error)}); {_SET_ENDPOINT}")
    return StoreError(f"{target}: {_line(error)}; {_SET_ENDPOINT}")


def _answered(error: ClientError, target: str, opening: bool) -> DitError:
    """The error for a request that the server refused."""
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    user_error = InputError if opening else StoreError
    if code == "NoSuchBucket":
        kind = MissingError if opening else StoreError
        return kind(f"{target}: the bucket does not exist; create it, or correct the address")
    if code in _NO_OBJECT:
        return MissingError(f"{target}: no such object; run the step that makes it, or correct the address")
    if code in _REFUSED:
        return user_error(f"{target}: the credentials were refused ({code}); {_SET_KEYS}")
    if code in _DENIED:
        return user_error(f"{target}: access denied ({code}); the credentials must allow list, read, write and delete")
    return StoreError(f"{target}: {_line(error)}; see the server's log, then run again")


def _address(error: Exception) -> str:
    """The configured endpoint, or the one of the failed request without its path."""
    url = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url") or ""))
    return endpoint() or (f"{url.scheme}://{url.netloc}" if url.netloc else "AWS")


def _cause(error: Exception) -> str:
    """The innermost reason, such as `Connection refused`, without urllib3's wrapping."""
    inner = root_cause(getattr(error, "kwargs", {}).get("error") or error)
    return inner.strerror or _line(inner) if isinstance(inner, OSError) else _line(inner)


def _line(error: BaseException) -> str:
    return one_line(error).rstrip(".")
