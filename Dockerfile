# tidegate as a small image that runs as nobody in particular and needs no shell.
#
#   docker build --tag tidegate .
#   docker run --publish 8000:8000 --publish 8002:8002 --volume ./models:/models:ro tidegate
#
# Where base images cannot be pulled, scripts/build-image.sh builds the same from what the machine has.

ARG RUST_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
# `--no-default-features` leaves out the tract engine, minutes to compile; the image has ONNX Runtime in any case.
ARG FEATURES=
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
# shellcheck disable=SC2086
RUN cargo build --locked --release --bin tidegate ${FEATURES}

FROM ${BASE_IMAGE} AS onnxruntime
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
COPY scripts/fetch-onnxruntime.sh /
RUN /fetch-onnxruntime.sh /onnxruntime

# Debian's slim image, for the C and C++ libraries that ONNX Runtime needs; an image on musl cannot load it.
FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="tidegate" \
      org.opencontainers.image.description="Serves ONNX models and closes the MLOps loop in the data path" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"

COPY --from=build /src/target/release/tidegate /usr/local/bin/tidegate
COPY --from=onnxruntime /onnxruntime/libonnxruntime.so /usr/local/bin/lib/libonnxruntime.so
COPY --from=onnxruntime /onnxruntime/LICENSE /onnxruntime/ThirdPartyNotices.txt /usr/share/doc/onnxruntime/
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/tidegate/
COPY models /models

# State is written below the working directory; mount a volume there to keep it. The number, for clusters that check.
RUN install -d -o 65532 -g 65532 /var/lib/tidegate
WORKDIR /var/lib/tidegate
USER 65532:65532

# HTTP, and admin: metrics and probes. Without authentication a wide admin address serves nothing else.
EXPOSE 8000 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["tidegate", "health"]
ENTRYPOINT ["tidegate"]
CMD ["serve", "--repository", "/models", "--http", "0.0.0.0:8000", "--admin", "0.0.0.0:8002"]
