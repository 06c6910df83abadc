# The service with its bundled checkpoints, on CPUs.
#   docker build -t q8bert .
#   docker run --rm -p 127.0.0.1:8000:8000 q8bert
# Runs with a read-only root file system (/tmp writable), without any capability, as user 10001. A volume at
# /var/cache/q8bert keeps packed weights and measured kernel times; without one they are made again at each start.

FROM python:3.11-slim-bookworm AS wheel

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
# For the native kernel, which is compiled into the wheel; no other stage has a compiler.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY q8core q8core
COPY service service
RUN pip wheel --no-deps --wheel-dir /wheels .


FROM python:3.11-slim-bookworm AS builder

# PyPI's Linux wheel of torch brings gigabytes of CUDA; PyTorch's own index has it for CPUs only.
# Empty means plain pip: whatever index or wheel folder the image's pip is configured for.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /build

# The dependencies first: this layer stays while the project changes. torch by itself and without its
# dependencies, so that the CPU index decides about nothing but torch.
COPY docker/requirements.txt docker/
RUN pip install --no-deps ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep '^torch==' docker/requirements.txt)" \
 && pip install -r docker/requirements.txt

# A wheel for any machine would have no native kernel. `pip check` refuses an image whose pins do not satisfy
# pyproject.toml. Afterwards nothing is installed any more, and torch's C++ headers and test programs (190 MB)
# serve only compilers.
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/q8bert-*-manylinux_*.whl \
 && pip check \
 && pip uninstall --yes pip \
 && cd /venv/lib/python3.11/site-packages/torch \
 && rm -rf include share test \
 && find bin -mindepth 1 ! -name torch_shm_manager -delete


FROM python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="q8bert" \
      org.opencontainers.image.description="BERT classification and question answering with int8 kernels on CPUs" \
      org.opencontainers.image.licenses="Apache-2.0"

RUN groupadd --gid 10001 q8bert \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin q8bert \
 && install --directory --owner 10001 --group 10001 /var/cache/q8bert

COPY --from=builder /venv /venv
COPY docker/healthcheck.py /app/healthcheck.py

ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    HF_HOME=/tmp/huggingface \
    Q8BERT_CACHE=/var/cache/q8bert \
    Q8BERT_HOST=0.0.0.0 \
    Q8BERT_PORT=8000

WORKDIR /app
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=4s --start-period=180s --retries=3 \
  CMD ["python", "-I", "/app/healthcheck.py"]

# Exec form: the server is process 1 and gets the SIGTERM that drains it.
ENTRYPOINT ["q8bert"]
CMD ["serve"]
