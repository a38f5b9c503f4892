"""Which variables `cluster.env` of a study file may set in pods. Torch-free."""

from __future__ import annotations

import re

from dit.study.fields import SecretError, without_credentials

# The operators and torchrun set these: with a value from the study the ranks would not find each other.
_LAUNCHERS = re.compile(
    r"^(PET_|TORCHELASTIC_|(RANK|LOCAL_RANK|GROUP_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$)"
)
# With these, a study file would run code of its own in pods that hold credentials. The admission policy of job pods
# refuses them, too (k8s/admission/policies.yaml).
_LOADS_CODE = re.compile(
    r"^(LD_.*|GLIBC_TUNABLES|GCONV_PATH|PYTHON(PATH|HOME|STARTUP|BREAKPOINT|USERBASE|PLATLIBDIR|EXECUTABLE)|BASH_ENV|ENV"
    r"|CC|CXX|TRITON_.*_PATH|AWS_CONFIG_FILE)$"
)
# To these addresses pods send credentials.
_SERVICE_ADDRESS = re.compile(
    r"^(AWS_ENDPOINT_URL.*|AWS_CONTAINER_CREDENTIALS_.*|MLFLOW_(TRACKING|REGISTRY)_URI|MLFLOW_S3_ENDPOINT_URL"
    r"|(HTTPS?|ALL)_PROXY)$",
    re.IGNORECASE,
)
# The last word of a variable's name, such as PGPASSWORD, HF_TOKEN, API_KEY or MYSQL_PWD.
_SECRET = re.compile(
    r"(PASSWORDS?|PASSWD|PASSPHRASE|TOKENS?|SECRETS?|CREDENTIALS?|APIKEY|(^|_)(PASS|PWD|KEY|KEYS|PAT|AUTH|BEARER|COOKIE|DSN))"
    r"(_(ID|VALUE|BASE64|B64|JSON|TEXT|STRING|HASH|[0-9]+))*$",
    re.IGNORECASE,
)
_PRIVATE_KEY = "-----BEGIN"


def check_variable(name: str, value: str) -> None:
    """Raises ValueError for a variable that would break the job, load code or send credentials elsewhere.

    Raises SecretError, without the value, for one that may hold a secret.
    """
    if _LAUNCHERS.match(name):
        raise ValueError(f"{name} is set by the operator and torchrun; remove it")
    if _LOADS_CODE.match(name):
        raise ValueError(f"{name} would load code into the pods; remove it, and put the code into the image")
    if _SERVICE_ADDRESS.match(name):
        raise ValueError(
            f"{name} is an address to which pods send credentials; remove it, and set it in config map dit-services of"
            " the deployment"
        )
    if _SECRET.search(name) or _PRIVATE_KEY in value:
        raise SecretError(f"{name} looks like a secret; put it into a Secret, named in cluster.secrets")
    try:
        without_credentials(value)
    except SecretError as error:
        raise SecretError(f"{name} {error}; or put it into a Secret, named in cluster.secrets") from None
