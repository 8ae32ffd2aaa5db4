# The image is one static file: no shell, no libc, no certificates of its own.
#   docker build -t leasehold .
#   docker build --build-arg BUILDER=registry.example/rust:1-bookworm -t leasehold .
ARG BUILDER=rust:1-bookworm
FROM ${BUILDER} AS build
WORKDIR /src
COPY . .
# A target is named even though it is the host's own: flags then do not reach build scripts and macros, which
# cannot be static. Paths of the builder stay out of the file, so that two builds are the same.
RUN set -eu; \
    target="$(rustc -vV | sed -n 's/^host: //p')"; \
    export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=/src=. --remap-path-prefix=${CARGO_HOME:-/usr/local/cargo}=cargo"; \
    cargo build --locked --profile dist --target "$target" --bin leasehold; \
    install -D -m 0555 "target/$target/dist/leasehold" /out/leasehold

FROM scratch
COPY --from=build /out/leasehold /leasehold
# Uid 0 without capabilities: the kubelet's folders belong to root. The chart drops them all.
USER 0:0
ENTRYPOINT ["/leasehold"]
