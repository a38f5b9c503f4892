"""The objects of a cluster from which pods have the settings of the store and of MLflow."""

from __future__ import annotations

import base64
from typing import Any

_PLACE = "/api/v1/namespaces/dit-scaling"


def settings_objects(endpoint: str, key: str = "key", tracking: str = "http://m") -> dict[str, Any]:
    """Paths of the API -> config map and secrets, with an S3 server at `endpoint`."""

    def secret(**data: str) -> dict[str, Any]:
        return {"data": {name: base64.b64encode(value.encode()).decode() for name, value in data.items()}}

    services = {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_REGION": "us-east-1", "MLFLOW_TRACKING_URI": tracking}
    return {
        f"{_PLACE}/configmaps/dit-services": {"data": services},
        f"{_PLACE}/secrets/dit-s3": secret(AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY="secret"),
        f"{_PLACE}/secrets/dit-mlflow": secret(MLFLOW_TRACKING_USERNAME="x", MLFLOW_TRACKING_PASSWORD="x"),
    }
