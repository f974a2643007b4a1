# The suite's container: a CUDA base, Python and a compiler from its distribution, and the locked packages in /opt/venv.
# `make image` builds it; `make container TARGET=all` and `make shell` run it with the source mounted read-only at /bench.
ARG BASE_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04@sha256:7c7413a56200486f71f181cad9310f6fd31b6bb21816ade15fc9c1e1e927a5c1
FROM ${BASE_IMAGE}

# gcc, g++ and the headers stay in the image: torch.compile and Triton compile while the suite runs.
RUN apt-get update --quiet \
    && DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends \
        ca-certificates g++ gcc git libc6-dev make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV LANG=C.UTF-8 \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1

# The locks alone, before the source: a change of the source leaves the 6 GB layer of packages as it is.
COPY requirements.lock requirements-dev.lock /opt/lock/
RUN python3 -m venv "$VIRTUAL_ENV" \
    && pip install --quiet --no-cache-dir --disable-pip-version-check --use-pep517 --require-hashes \
        -r /opt/lock/requirements.lock -r /opt/lock/requirements-dev.lock

# Whoever runs the container may have no entry in /etc/passwd: USER answers for getpass.getuser(), which torch's compiler
# cache asks, and every folder that something writes to is open to any user id.
ENV USER=bench \
    LOGNAME=bench \
    HOME=/home/bench \
    XDG_CACHE_HOME=/home/bench/.cache \
    TORCHINDUCTOR_CACHE_DIR=/home/bench/.cache/inductor \
    TRITON_CACHE_DIR=/home/bench/.cache/triton \
    CUDA_CACHE_PATH=/home/bench/.cache/cuda \
    MPLCONFIGDIR=/home/bench/.cache/matplotlib \
    MYPY_CACHE_DIR=/home/bench/.cache/mypy \
    RUFF_CACHE_DIR=/home/bench/.cache/ruff \
    DATASETS=/datasets \
    RESULTS=/results
RUN install --directory --mode=1777 "$HOME" "$DATASETS" "$RESULTS"

WORKDIR /bench
COPY . .

# What a record says of the code and the container: with requirements.lock, which a record names too, the base decides
# what is installed, up to the distribution's security fixes. Last, so that a new commit rebuilds nothing above.
ARG BASE_IMAGE
ARG BENCH_COMMIT=
ARG BENCH_IMAGE=${BASE_IMAGE}
ENV BENCH_COMMIT=${BENCH_COMMIT} \
    BENCH_IMAGE=${BENCH_IMAGE}

VOLUME ["/datasets", "/results"]
USER 1000:1000
CMD ["make", "help"]
