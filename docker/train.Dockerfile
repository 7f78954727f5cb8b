# The pipeline: the verbs of `pocketqa` from pretraining to bundles for phones.  No root; amd64, and arm64 without Core ML.
#   docker build -f docker/train.Dockerfile -t pocketqa:train .
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/data" pocketqa:train finetune CHECKPOINT --data train-v1.1.json --out out/student
# TORCH_INDEX names another build of PyTorch, as in the Makefile: one of its CUDA indexes, for GPUs.

FROM python:3.12-slim AS build
ARG TORCH="torch==2.13.0"
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/pocketqa \
    && /opt/pocketqa/bin/python -m pip install --no-cache-dir --disable-pip-version-check --index-url "${TORCH_INDEX}" "${TORCH}"
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY pocketqa ./pocketqa
COPY distillation ./distillation
COPY mobile_export ./mobile_export
RUN /opt/pocketqa/bin/python -m pip install --no-cache-dir --disable-pip-version-check ".[export,report]" \
    && /opt/pocketqa/bin/python -m pip uninstall --yes pip

FROM python:3.12-slim
COPY --from=build /opt/pocketqa /opt/pocketqa
# What a run writes lies in /data, which is to be mounted; models from the Hub are kept there too.
ENV PATH="/opt/pocketqa/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/data/.huggingface
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["pocketqa"]
CMD ["--help"]
