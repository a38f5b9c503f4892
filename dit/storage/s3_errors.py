"""Errors of S3 and of the connection to it as one line each: what, where, what to do. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
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

from dit.errors import (
    CredentialsError,
    DitError,
    InputError,
    MissingError,
    StoreError,
    TransientStoreError,
    one_line,
    root_cause,
)

_SET_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_SET_ENDPOINT = "check AWS_ENDPOINT_URL_S3, the server and the network"


class Answer(NamedTuple):
    """An error code of a server in words, and its one remedy."""

    problem: str
    remedy: str
    kind: type[StoreError] = StoreError
    """A plain StoreError is a mistake of the user: an InputError while the store is being opened."""


ANSWERS: dict[str, Answer] = {
    code: answer
    for codes, answer in (
        (
            "InvalidAccessKeyId SignatureDoesNotMatch InvalidSecurity XAdminUserNotFound",
            Answer("the credentials were refused", _SET_KEYS, CredentialsError),
        ),
        (
            "ExpiredToken ExpiredTokenException InvalidToken TokenRefreshRequired RequestExpired",
            Answer(
                "the session token was refused",
                "renew the credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN together",
                CredentialsError,
            ),
        ),
        (
            "RequestTimeTooSkewed RequestInTheFuture",
            Answer(
                "the clocks of this machine and of the server differ", "set the clock, with NTP", TransientStoreError
            ),
        ),
        (
            "AccessDenied AllAccessDisabled 401 403 Forbidden",
            Answer("access denied", "the credentials must allow list, read, write and delete"),
        ),
        (
            "AccountProblem NotSignedUp UserSuspended",
            Answer("the account is suspended", "ask the provider of the store", TransientStoreError),
        ),
        (
            "AuthorizationHeaderMalformed InvalidRegion IllegalLocationConstraintException IncorrectEndpoint",
            Answer("the bucket is in another region", "set AWS_DEFAULT_REGION to the bucket's region"),
        ),
        (
            "SecondLevelDomainForbidden InvalidAddressingHeader PathStyleRequestNotAllowed PathStyleDomainForbidden",
            Answer(
                "the server wants the bucket in the host name",
                "set DIT_S3_ADDRESSING=virtual, or path for the opposite",
            ),
        ),
        (
            "XMinioStorageFull StorageFull InsufficientStorage InsufficientCapacity 507",
            Answer("the server's disk is full", "free space on the server, then run again", TransientStoreError),
        ),
        (
            "QuotaExceeded XMinioAdminBucketQuotaExceeded StorageQuotaExceeded TooManyBuckets",
            Answer("the quota is used up", "delete objects or raise the quota, then run again", TransientStoreError),
        ),
        (
            "SlowDown SlowDownRead SlowDownWrite Throttling ThrottlingException RequestLimitExceeded TooManyRequests"
            " TooManyRequestsException BandwidthLimitExceeded RequestThrottled 429",
            Answer("the server is overloaded", "wait, then run again", TransientStoreError),
        ),
        (
            "RequestTimeout RequestTimeoutException OperationAborted XMinioServerNotInitialized",
            Answer("the server did not complete the request", "wait, then run again", TransientStoreError),
        ),
        (
            "InvalidObjectState",
            Answer("the object is archived", "restore it to the standard storage class, then run again"),
        ),
    )
    for code in codes.split()
}
"""Error codes of S3 and of servers with its protocol (MinIO, Ceph, OSS), also bare statuses."""

_NO_OBJECT = {"NoSuchKey", "404", "NotFound"}
_BROKEN = Answer("the server failed", "see the server's log, then run again", TransientStoreError)
_OTHER = Answer("refused", "see the server's log, then run again")
_TEXT_LENGTH = 300
_NO_KEYS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
    ProfileNotFound,
    InvalidConfigError,
)


@contextmanager
def s3_errors(where: str, *, opening: bool = False) -> Iterator[None]:
    """Turn errors of boto3 into a DitError that names the address.

    While a store is being opened (`opening`), a mistake of the user is an InputError, and a missing bucket a
    MissingError. Later both are a StoreError, and MissingError means a missing object. What can heal by itself, refused
    credentials for example, is a TransientStoreError at any time.
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
    if isinstance(error, _NO_KEYS):
        refused = InputError if opening else CredentialsError
        return refused(f"{target}: no usable credentials ({_line(error)}); {_SET_KEYS}")
    if isinstance(error, ParamValidationError):
        mistaken = InputError if opening else StoreError
        return mistaken(f"{where}: {_line(error).removeprefix('Parameter validation failed: ')}; correct the address")
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
        return TransientStoreError(f"{target}: no answer; {_SET_ENDPOINT}")
    if isinstance(error, HTTPClientError | BotoConnectionError | TransportError):
        return TransientStoreError(f"{target}: cannot be reached ({_cause(error)}); {_SET_ENDPOINT}")
    return StoreError(f"{target}: {_line(error)}; {_SET_ENDPOINT}")


def _answered(error: ClientError, target: str, opening: bool) -> DitError:
    """The error for a request that the server refused."""
    code = str(error.response.get("Error", {}).get("Code") or http_status(error))
    if code == "NoSuchBucket":
        kind = MissingError if opening else StoreError
        return kind(f"{target}: the bucket does not exist; create it, or correct the address")
    if code in _NO_OBJECT:
        return MissingError(f"{target}: no such object; run the step that makes it, or correct the address")
    answer = _answer(error, code)
    raised = InputError if opening and answer.kind is StoreError and answer is not _OTHER else answer.kind
    return raised(f"{target}: {answer.problem} ({_reason(error, code)}); {answer.remedy}")


def _answer(error: ClientError, code: str) -> Answer:
    """The row of the table for this code, or else one that follows from the status."""
    status, headers = http_status(error), error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if 300 <= status < 400:
        place = urlsplit(headers.get("location", ""))
        to = f"{place.scheme}://{place.netloc}" if place.netloc else error.response["Error"].get("Endpoint")
        remedy = f"set AWS_ENDPOINT_URL_S3={to}" if to else "set AWS_ENDPOINT_URL_S3 to the address that it names"
        return Answer(f"the server redirects to {to or 'another address'}", remedy)
    return ANSWERS.get(code) or ANSWERS.get(str(status)) or (_BROKEN if status >= 500 else _OTHER)


def http_status(error: ClientError) -> int:
    """The status of the answer; 0 if it is not known."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _reason(error: ClientError, code: str) -> str:
    """Code and text of the server."""
    text = one_line(error.response["Error"].get("Message") or "").rstrip(".")
    return f"{code}: {text[:_TEXT_LENGTH]}" if text else code


def _address(error: Exception) -> str:
    """The configured endpoint, or the one of the failed request without its path."""
    url = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url") or ""))
    return endpoint() or (f"{url.scheme}://{url.netloc}" if url.netloc else "AWS")


def _cause(error: Exception) -> str:
    """The innermost reason, such as `Connection refused`, without urllib3's wrapping."""
    inner = root_cause(getattr(error, "kwargs", {}).get("error") or error)
    return inner.strerror or _line(inner) if isinstance(inner, OSError) else _line(inner)


def _line(error: BaseException | str) -> str:
    return one_line(error).rstrip(".")
