# The image that all stages and the launcher run in: `make build`. Built from slow to quick: what changes most often, the
# code, is the last and smallest layer, and torch with CUDA has one of its own.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# What builds, and is not in the image.
FROM ${BASE_IMAGE} AS tools
ARG INDEX_URL=https://pypi.org/simple
COPY .ci/tools.txt /tools.txt
RUN --mount=type=secret,id=ca,target=/run/ca.crt \
    --mount=type=secret,id=netrc,target=/root/.netrc \
    if test -f /run/ca.crt; then export PIP_CERT=/run/ca.crt; fi; \
    python3 -m venv /tools \
    && /tools/bin/pip install --no-cache-dir --disable-pip-version-check --index-url "$INDEX_URL" \
        --require-hashes -r /tools.txt
COPY docker/install /tools/bin/install-into-image

FROM tools AS wheel
WORKDIR /source
COPY pyproject.toml README.md ./
COPY dit dit
COPY pipelines pipelines
RUN /tools/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /wheel .

FROM ${BASE_IMAGE} AS stages
# torch.compile builds its kernels with a C++ compiler when a training starts on a GPU. A base whose Python comes from
# Debian has its headers in python3-dev; an empty SYSTEM_PACKAGES leaves torch.compile off.
ARG SYSTEM_PACKAGES="g++"
RUN test -z "$SYSTEM_PACKAGES" \
    || { apt-get update && apt-get install --yes --no-install-recommends $SYSTEM_PACKAGES && rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv --without-pip /opt/venv

ARG INDEX_URL=https://pypi.org/simple
RUN --mount=type=bind,from=tools,source=/tools,target=/tools \
    --mount=type=bind,source=docker/torch.txt,target=/requirements.txt \
    --mount=type=secret,id=ca,target=/run/ca.crt \
    --mount=type=secret,id=netrc,target=/root/.netrc \
    --mount=type=cache,target=/root/.cache/uv \
    /tools/bin/install-into-image --require-hashes -r /requirements.txt
RUN --mount=type=bind,from=tools,source=/tools,target=/tools \
    --mount=type=bind,source=docker/stages.txt,target=/requirements.txt \
    --mount=type=secret,id=ca,target=/run/ca.crt \
    --mount=type=secret,id=netrc,target=/root/.netrc \
    --mount=type=cache,target=/root/.cache/uv \
    /tools/bin/install-into-image --require-hashes -r /requirements.txt
RUN --mount=type=bind,from=tools,source=/tools,target=/tools \
    --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    /tools/bin/install-into-image --offline /wheel/*.whl

# The user has no entry in /etc/passwd, and the root file system is read-only on a cluster: a name for those who ask for
# one, and /tmp as the one place where caches go.
ENV PATH=/opt/venv/bin:$PATH USER=dit HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["dit"]
CMD ["--help"]

ARG VERSION=unknown
ARG REVISION=unknown
# `dit --version` and the records show it.
ENV DIT_REVISION="$REVISION"
LABEL org.opencontainers.image.title="dit-scaling" \
    org.opencontainers.image.description="The stages of a scaling study of diffusion transformers" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
