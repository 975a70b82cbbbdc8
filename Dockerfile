# syntax=docker/dockerfile:1
# One image for the head, the workers, the submitter and the preflight: Ray wants the same Python and Ray everywhere.
#
#   docker build -t crate-scaling:0.1.0 .                                GPU, on an NGC PyTorch image: apex, fused operations
#   docker build -t crate-scaling:0.1.0 --build-arg FLAVOR=cuda .        GPU, on plain Python and CUDA wheels, hashes checked
#   docker build -t crate-scaling:0.1.0-cpu --build-arg FLAVOR=cpu .     CPU: smoke tests, tokenizing
#   docker build -t crate-mlflow:3.17.2 --target mlflow .                the tracking server
#
# cluster/README.md says how to pin the bases by digest and push; cluster/build_cpu_image.sh builds and runs the CPU
# flavour with buildah alone.

ARG FLAVOR=gpu
# NVIDIA's PyTorch image brings CUDA, NCCL, apex and a torch of its own build, which must be of the series that
# pyproject.toml pins. Which month carries that series is not proved here: the build looks, and stops if it is another.
# A tag can move: for a study append the digest that `docker buildx imagetools inspect` prints, ...:26.07-py3@sha256:...
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:26.07-py3
ARG CPU_BASE_IMAGE=python:3.11-slim-bookworm

# ---------------------------------------------------------------- CPU: torch and everything else into one environment
FROM ${CPU_BASE_IMAGE} AS cpu-deps
ARG TORCH_VERSION=2.13.0
# The package registry's own torch brings CUDA along. Point pip at PyTorch's CPU wheels here, for instance
# --build-arg TORCH_PIP_ARGS="--index-url <PyTorch's CPU wheel index>", or mount a folder of wheels and use --find-links.
ARG TORCH_PIP_ARGS=""
ENV PATH=/opt/crate/bin:$PATH
COPY cluster/requirements-image.lock /opt/locks/
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The lock is a full closure: --no-deps installs exactly it and can never replace torch. `pip check` proves it whole.
# hadolint ignore=DL3013,SC2086
RUN python3 -m venv /opt/crate \
    && pip install --no-cache-dir $TORCH_PIP_ARGS "torch==${TORCH_VERSION}" \
    && pip install --no-cache-dir --no-deps -r /opt/locks/requirements-image.lock \
    && pip check

# --------------------- CUDA without NGC: exact wheels of torch and its CUDA libraries; no apex, no operation of DeepSpeed's
FROM ${CPU_BASE_IMAGE} AS cuda-deps
ENV PATH=/opt/crate/bin:$PATH
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# On each node Triton compiles the C module that launches its kernels, and torch.compile what it runs on the processor: both
# want a compiler at run time, which a slim base lacks. No version is named: Debian keeps only a release's newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY cluster/requirements-gpu.lock /opt/locks/
# The last line proves that the compiler finds C's, C++'s and Python's headers.
RUN python3 -m venv /opt/crate \
    && pip install --no-cache-dir --require-hashes -r /opt/locks/requirements-gpu.lock \
    && pip check \
    && printf '#include <vector>\n#include <Python.h>\n' \
       | g++ -x c++ -fsyntax-only -I "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')" -

# ------------------------------------------ GPU: DeepSpeed's fused operations, compiled here and never on a running pod
FROM ${BASE_IMAGE} AS gpu-ops
ARG DEEPSPEED_VERSION=0.19.8
# Compute capabilities to compile for: A100 8.0, H100 and H200 9.0, B200 10.0. No GPU is needed to build.
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0"
# More than FUSED_ADAM only with care: CPU_ADAM (for offload) is compiled for the very CPU that builds it.
ARG DEEPSPEED_OPS="FUSED_ADAM"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# PIP_CONSTRAINT: NGC images pin what they ship; the constraint file would forbid the build's own requirements.
RUN for op in $DEEPSPEED_OPS; do export "DS_BUILD_${op}=1"; done \
    && export PIP_CONSTRAINT="" DS_BUILD_OPS=0 DS_ACCELERATOR=cuda TORCH_CUDA_ARCH_LIST MAX_JOBS="${MAX_JOBS:-8}" \
    && pip install --no-cache-dir ninja==1.13.0 py-cpuinfo==9.0.0 \
    && pip wheel --no-cache-dir --no-build-isolation --no-deps --no-binary deepspeed \
       --wheel-dir /wheels "deepspeed==${DEEPSPEED_VERSION}"

FROM ${BASE_IMAGE} AS gpu-deps
ARG TORCH_VERSION=2.13.0
# required: the build fails without NVIDIA's compiled apex. optional: torch's fused AdamW is used in its place, told.
ARG APEX=required
ENV PATH=/opt/crate/bin:$PATH PIP_CONSTRAINT=""
COPY cluster/requirements-image.lock /opt/locks/
COPY --from=gpu-ops /wheels /wheels
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The base's torch is NVIDIA's build and stays: the environment sees it and the base's pip, the lock does not name it, and
# --no-deps pulls nothing.
# hadolint ignore=DL3013
RUN python3 -c "import torch; print(torch.__version__)" > /opt/locks/torch \
    && { grep "^${TORCH_VERSION%.*}\." /opt/locks/torch \
         || { echo "the base has torch $(cat /opt/locks/torch), wanted ${TORCH_VERSION%.*}: choose another BASE_IMAGE" >&2; exit 1; }; } \
    && python3 -m venv --system-site-packages --without-pip /opt/crate \
    && python -m pip install --no-cache-dir --no-deps --no-index --find-links /wheels deepspeed \
    && python -m pip install --no-cache-dir --no-deps -r /opt/locks/requirements-image.lock \
    && python -c "import torch; print(torch.__version__)" | diff - /opt/locks/torch \
    && python -c "from deepspeed.git_version_info import accelerator_name as by, installed_ops as ops; \
                  assert by == 'cuda' and ops['fused_adam'], (by, ops)" \
    && { python -c "import amp_C; from apex.optimizers import FusedAdam" \
         || { echo "the base has no NVIDIA apex with its compiled amp_C" >&2; [ "$APEX" = optional ]; }; }

# ------------------------------------------------------------------------ the tracking server: no torch, no Ray, no code
FROM ${CPU_BASE_IMAGE} AS mlflow
COPY cluster/mlflow/requirements.txt /opt/locks/requirements.txt
ENV PATH=/opt/mlflow/bin:$PATH HOME=/home/mlflow MLFLOW_DISABLE_TELEMETRY=true
RUN python3 -m venv /opt/mlflow \
    && pip install --no-cache-dir -r /opt/locks/requirements.txt \
    && groupadd --gid 10001 mlflow && useradd --uid 10001 --gid 10001 --create-home mlflow
USER 10001:10001
WORKDIR /home/mlflow
EXPOSE 5000
HEALTHCHECK --start-period=60s CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:5000/health', timeout=5)"]
# Refuses to start without MLFLOW_AUTH_ADMIN_PASSWORD: there is no server without a password.
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--app-name", "basic-auth"]

# ------------------------------------------------------------------------------------------- the image itself, both ways
FROM ${FLAVOR}-deps AS run
ARG FLAVOR
ARG VERSION=0.1.0
# --build-arg GIT_SHA=$(git rev-parse HEAD): every artifact's provenance says it; empty is said as unknown.
ARG GIT_SHA=""
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# KubeRay starts Ray by `bash -c`; an old operator uses a login shell, which resets PATH: profile.d puts it back.
# crate.pth lets `import pipeline` work from any folder, below a job's own working_dir in precedence.
RUN groupadd --gid 10001 crate && useradd --uid 10001 --gid 10001 --create-home --shell /bin/bash crate \
    && echo "export PATH=/opt/crate/bin:\$PATH" > /etc/profile.d/crate.sh \
    && echo /app > "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/crate.pth"
COPY crate_model /app/crate_model
COPY pipeline /app/pipeline
COPY configs /app/configs
COPY cluster/preflight /app/cluster/preflight
COPY cluster/leave.py /app/cluster/leave.py
COPY pyproject.toml /app/pyproject.toml
WORKDIR /app
RUN python -m compileall -q crate_model pipeline cluster \
    && python -m pipeline --help > /dev/null
# A stopped job has this long to write its checkpoints; Ray's own answer is three seconds.
ENV RAY_JOB_STOP_WAIT_TIME_S=110
ENV HOME=/home/crate CRATE_GIT_SHA=${GIT_SHA} PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true HF_HUB_DISABLE_TELEMETRY=1 \
    TORCH_EXTENSIONS_DIR=/tmp/torch_extensions TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor TRITON_CACHE_DIR=/tmp/triton
LABEL org.opencontainers.image.title="crate-scaling" \
      org.opencontainers.image.description="CRATE and GPT-2 language models: train, extract, explain, steer, report" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_SHA}" \
      crate.flavor="${FLAVOR}"
USER 10001:10001
# The Ray agent's own health, the address that KubeRay probes too; a container without Ray in it is reported unhealthy.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:52365/api/healthz', timeout=5)"]
# NGC's entry point prints a banner and runs what follows; KubeRay overrides both.
ENTRYPOINT []
CMD ["python", "pipeline/sweep.py", "--config", "configs/quickstart.yaml"]
