# A data owner's node: the data stay here. Build from the top of the repository:
#   docker build -f deploy/client.Dockerfile -t tacit-client .
# An owner's own apps and model factories are installed in an image of their own, on top:
#   FROM tacit-client
#   USER root
#   COPY --from=wheels /wheels /wheels
#   RUN python -m ensurepip && python -m pip install --no-index --find-links /wheels their-app
#   USER 10001:10001
# Pin the base by digest in production: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/tacit
WORKDIR /source
# The dependencies first: a change of our code does not install torch again.
COPY constraints.txt pyproject.toml ./
RUN /opt/tacit/bin/pip install -c constraints.txt --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple "torch==2.13.0"
COPY . .
RUN /opt/tacit/bin/pip install -c constraints.txt . \
 && /opt/tacit/bin/pip uninstall -y pip \
 && find /opt/tacit -name '*.a' -delete

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="tacit-client" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 tacit \
 && useradd --system --uid 10001 --gid tacit --home-dir /var/lib/tacit --no-create-home --shell /usr/sbin/nologin tacit \
 && install -d -o tacit -g tacit -m 0700 /var/lib/tacit /var/lib/tacit/client
COPY --from=build /opt/tacit /opt/tacit
ENV PATH=/opt/tacit/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FLWR_TELEMETRY_ENABLED=0 \
    TACIT_CLIENT_HOME=/var/lib/tacit/client
USER 10001:10001
WORKDIR /var/lib/tacit
# The state (keys, approvals, outbox) is written; the data are mounted read-only at /data.
VOLUME ["/var/lib/tacit/client"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD tacit client status --json | grep -Eq '"state": *"connect(ed|ing)"' || exit 1
CMD ["tacit", "client", "start"]
