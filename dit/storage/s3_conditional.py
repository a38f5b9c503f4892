"""Conditional writes of S3: an object is replaced only if nobody else has replaced it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError

_NO_OBJECT = {"NoSuchKey", "404"}
_REFUSED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", *_NO_OBJECT}
_NOT_SUPPORTED = {"NotImplemented", "501"}


def replace_object(client: Any, request: Mapping[str, Any], expected: bytes | None) -> bool:
    """Put an object (`request`: arguments of `put_object`) if its content is `expected`, None for no object.

    Returns whether the object now has the new content. Raises the errors of boto3.
    """
    place = {"Bucket": request["Bucket"], "Key": request["Key"]}
    held, tag = _read(client, place)
    if held != expected:
        return False
    condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
    try:
        client.put_object(**request, **condition)
    except ClientError as error:
        if _code(error) in _NOT_SUPPORTED:
            client.put_object(**request)
        elif _code(error) not in _REFUSED:
            raise
        # The client repeats a request whose answer was lost: if the first one took effect, the second is refused.
        return _read(client, place)[0] == bytes(request["Body"])
    return True


def _read(client: Any, place: Mapping[str, Any]) -> tuple[bytes | None, str | None]:
    """An object's content and ETag; None for both if there is none."""
    try:
        answer = client.get_object(**place)
    except ClientError as error:
        if _code(error) not in _NO_OBJECT:
            raise
        return None, None
    return bytes(answer["Body"].read()), str(answer["ETag"])


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code"))
