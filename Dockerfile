# The image of all stages and the launcher: `make build`. Layers are ordered by how often they change: torch with CUDA is a
# layer of its own, and the code is the last and smallest.
ARG BASE_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# Build tools; not part of the image.
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
# torch.compile needs a C++ compiler when a training starts on a GPU; an empty SYSTEM_PACKAGES turns it off. For a base with
# Debian's Python, add python3-dev for the headers.
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

# No program may change its user: nothing in the image needs to.
RUN find / -xdev -type f -perm /6000 -exec chmod a-s {} +

# The user has no entry in /etc/passwd, so USER gives programs a name. On a cluster the root file system is read-only, so
# caches go to /tmp.
ENV PATH=/opt/venv/bin:$PATH USER=dit HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["dit"]
CMD ["--help"]

ARG VERSION=unknown
ARG REVISION=unknown
# Shown by `dit --version` and stored in records.
ENV DIT_REVISION="$REVISION"
LABEL org.opencontainers.image.title="dit-scaling" \
    org.opencontainers.image.description="The stages of a scaling study of diffusion transformers" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
