# The aggregation daemon: holds no data, cannot train. Build from the top of the repository:
#   docker build -f deploy/server.Dockerfile -t tacit-server .
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
LABEL org.opencontainers.image.title="tacit-server" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 tacit \
 && useradd --system --uid 10001 --gid tacit --home-dir /var/lib/tacit --no-create-home --shell /usr/sbin/nologin tacit \
 && install -d -o tacit -g tacit -m 0700 /var/lib/tacit /var/lib/tacit/server /var/lib/tacit/operator
COPY --from=build /opt/tacit /opt/tacit
ENV PATH=/opt/tacit/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FLWR_TELEMETRY_ENABLED=0 \
    TACIT_SERVER_HOME=/var/lib/tacit/server \
    TACIT_OPERATOR_HOME=/var/lib/tacit/operator
USER 10001:10001
WORKDIR /var/lib/tacit
# `server init` leaves the first operator's profile beside the server's state.
VOLUME ["/var/lib/tacit/server", "/var/lib/tacit/operator"]
EXPOSE 7443 7444
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD tacit server status --json | grep -Eq '"state": *"(running|draining)"' || exit 1
CMD ["tacit", "server", "start"]
