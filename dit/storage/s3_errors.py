"""What S3 and the way to it can answer, as one line each: what, where, what to do next. Torch-free."""

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
    """Raise what boto3 raises as a DitError that names the place.

    While a store is being opened, what the user can correct is an InputError; afterwards it is a StoreError, for then
    it happened to work under way. MissingError afterwards means the object, never the bucket.
    """
    try:
        yield
    except (ClientError, BotoCoreError, RetriesExceededError, TransportError) as error:
        raise _translated(error, where, opening) from error


def endpoint() -> str | None:
    """The S3 endpoint that the environment names; None is Amazon's own or one from a profile."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _translated(error: Exception, where: str, opening: bool) -> DitError:
    if isinstance(error, RetriesExceededError):
        error = error.last_exception
    if isinstance(error, ClientError):
        return _answered(error, f"{where} at {endpoint() or 'AWS'}", opening)
    asked = f"{where} at {_address(error)}"
    of_user = InputError if opening else StoreError
    if isinstance(error, _NO_KEYS):
        return of_user(f"{asked}: no usable credentials ({_line(error)}); {_SET_KEYS}")
    if isinstance(error, ParamValidationError):
        return of_user(f"{where}: {_line(error).removeprefix('Parameter validation failed: ')}; correct the address")
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
        return StoreError(f"{asked}: no answer; {_SET_ENDPOINT}")
    if isinstance(error, HTTPClientError | BotoConnectionError | TransportError):
        return StoreError(f"{asked}: cannot be reached ({_cause(error)}); {_SET_ENDPOINT}")
    return StoreError(f"{asked}: {_line(error)}; {_SET_ENDPOINT}")


def _answered(error: ClientError, asked: str, opening: bool) -> DitError:
    """The server answered, and the answer is no."""
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    of_user = InputError if opening else StoreError
    if code == "NoSuchBucket":
        kind = MissingError if opening else StoreError
        return kind(f"{asked}: the bucket does not exist; make it, or correct the address")
    if code in _NO_OBJECT:
        return MissingError(f"{asked}: no such object; run the step that makes it, or correct the address")
    if code in _REFUSED:
        return of_user(f"{asked}: the credentials were refused ({code}); {_SET_KEYS}")
    if code in _DENIED:
        return of_user(f"{asked}: access denied ({code}); the credentials must allow to list, read, write and delete")
    return StoreError(f"{asked}: {_line(error)}; see the server's log, then run again")


def _address(error: Exception) -> str:
    """The endpoint as configured, or as the failed request had it, without the request's path."""
    asked = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url") or ""))
    return endpoint() or (f"{asked.scheme}://{asked.netloc}" if asked.netloc else "AWS")


def _cause(error: Exception) -> str:
    """The innermost reason, such as `Connection refused`, out of what urllib3 wraps around it."""
    inner = root_cause(getattr(error, "kwargs", {}).get("error") or error)
    return inner.strerror or _line(inner) if isinstance(inner, OSError) else _line(inner)


def _line(error: BaseException) -> str:
    return one_line(error).rstrip(".")
