# The image is one static file: no shell, no libc, no certificates of its own.
#   docker build -t leasehold .
#   docker build --build-arg BUILDER=registry.example/rust:1-bookworm -t leasehold .
ARG BUILDER=rust:1-bookworm
FROM ${BUILDER} AS build
WORKDIR /src
COPY . .
RUN scripts/image binary /out/leasehold

FROM scratch
COPY --from=build /out/leasehold /leasehold
# Uid 0 without capabilities: the kubelet's folders belong to root. The chart drops them all.
USER 0:0
ENTRYPOINT ["/leasehold"]
