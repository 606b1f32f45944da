# The picker, slim and without root. `docker build -t epp .`; llm-d-router's container args work as they are.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY epp epp
COPY plugins plugins
COPY benchmarks/simulator benchmarks/simulator
RUN python -m venv /opt/epp && /opt/epp/bin/pip install --no-cache-dir '.[grpcio,kubernetes,otel]'

FROM python:3.13-slim
COPY --from=build /opt/epp /opt/epp
ENV PATH=/opt/epp/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Plugins of your own: FROM this image, `RUN /opt/epp/bin/pip install my-scorer`.
USER 65532:65532
# ext_proc, gRPC health, metrics
EXPOSE 9002 9003 9090
ENTRYPOINT ["epp", "serve"]
