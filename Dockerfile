# One image for jobs and servers.
#
#   docker build -t phf-ray:0.1.0-ray2.60.0 .
#   docker build -t phf-ray-cuda:0.1.0-ray2.60.0 --build-arg TORCH=cuda .
#
# TORCH=cpu takes the torch of constraints-cpu.txt as PyTorch's own CPU wheel, since PyPI's wheels for Linux bring CUDA with
# them; where that index can't be reached, --build-arg PIP_ARGS="--extra-index-url <a mirror of it>". TORCH=cuda takes the
# same version from PyPI.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

ARG TORCH=cpu
ARG PIP_ARGS=""

# KubeRay's probes call both in the pods of a RayService. Any version will do, and the newest has its security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bash wget \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 1000 phf && useradd --uid 1000 --gid 1000 --create-home phf

WORKDIR /app
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/app/constraints.txt \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0

# What changes seldom comes first.
COPY pyproject.toml constraints.txt constraints-cpu.txt ./
# Of one version in both indexes pip takes the one with a local label, 2.13.0+cpu. PIP_ARGS are several words.
# hadolint ignore=SC2086
RUN case "$TORCH" in \
        cpu) PIP_ARGS="${PIP_ARGS:---extra-index-url https://download.pytorch.org/whl/cpu}" ;; \
        cuda) PIP_ARGS="" ;; \
        *) echo "TORCH=$TORCH: give cpu or cuda" >&2; exit 1 ;; \
    esac \
    && pip install -c constraints-cpu.txt $PIP_ARGS torch numpy
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > requirements.txt \
    && pip install -c constraints-cpu.txt -r requirements.txt

COPY setup.py README.md LICENSE ./
COPY configs configs
COPY phf_ray phf_ray
COPY serve serve
COPY jobs jobs
RUN pip install --no-deps -e . && python -c "import phf_ray.config, serve.schemas, jobs.cli"

# Writable for the user: Ray's logs and caches; outputs go to mounted storage.
ENV HOME=/home/phf
USER 1000:1000
CMD ["bash"]
