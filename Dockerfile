# The picker, slim and without root. `docker build -t epp .`; llm-d-router's container args work as they are.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY epp epp
COPY plugins plugins
COPY benchmarks/simulator benchmarks/simulator
# What a configuration or a flag may ask for: the pool from Kubernetes, traces, exact token ids in process, an index that
# pickers share, the reference gRPC stack. `demo` (an Envoy of 90 MB) is not for here.
RUN python -m venv /opt/epp && /opt/epp/bin/pip install --no-cache-dir '.[grpcio,kubernetes,otel,redis,tokenizers]'

FROM python:3.13-slim
COPY --from=build /opt/epp /opt/epp
ENV PATH=/opt/epp/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The one thing that is written, for a moment: a key that OpenSSL reads from files only. Memory, and there with a read-only
# root filesystem too.
ENV TMPDIR=/dev/shm
# Plugins of your own: FROM this image, `RUN /opt/epp/bin/pip install my-scorer`.
USER 65532:65532
# ext_proc, gRPC health, metrics
EXPOSE 9002 9003 9090
ENTRYPOINT ["epp", "serve"]
