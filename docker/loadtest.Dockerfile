# The load test: locust with loadtest/qa.py, as one process, a master or a worker.  No root; amd64 and arm64.
#   docker build -f docker/loadtest.Dockerfile -t pocketqa:loadtest .
#   docker run --rm -p 127.0.0.1:8089:8089 pocketqa:loadtest --host http://HOST:8000

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY pocketqa ./pocketqa
RUN python -m venv /opt/pocketqa \
    && /opt/pocketqa/bin/python -m pip install --no-cache-dir --disable-pip-version-check ".[loadtest]" \
    && /opt/pocketqa/bin/python -m pip uninstall --yes pip

FROM python:3.12-slim
COPY --from=build /opt/pocketqa /opt/pocketqa
WORKDIR /srv
COPY loadtest ./loadtest
ENV PATH="/opt/pocketqa/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8089
ENTRYPOINT ["locust", "-f", "loadtest/qa.py"]
