# A static binary in an image with nothing else but the system's root certificates and a bill of
# materials. No shell, no package manager.
#
#   docker build --tag dns-proxy .
#   docker run -p 53:53/udp -p 53:53/tcp dns-proxy
#
# What it is FROM may be named, to build where no registry can be reached.
ARG BASE=debian:bookworm-slim
FROM ${BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
        binutils ca-certificates cargo-web gcc libc6-dev
WORKDIR /src
COPY . .
RUN cargo xtask setup --build
RUN target="$(rustc --print host-tuple)" && \
    RUSTFLAGS='-C target-feature=+crt-static' \
        cargo build --release --locked --package dns-proxy --target "$target" && \
    strip -o /dns-proxy "target/$target/release/dns-proxy" && \
    cargo xtask sbom /dns-proxy.cdx.json && \
    mkdir -p /empty

FROM scratch
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="dns-proxy" \
      org.opencontainers.image.description="Encrypts a container host's DNS: redirects port 53 with eBPF, forwards over DNS-over-TLS" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /dns-proxy.cdx.json /usr/share/doc/dns-proxy/dns-proxy.cdx.json
COPY --from=build /dns-proxy /dns-proxy
COPY --from=build --chown=65532:65532 /empty /run/dns-proxy
EXPOSE 53/udp 53/tcp
# A plain forwarder needs no root. Interception does: `--user 0` (see README.md).
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/dns-proxy", "health"]
ENTRYPOINT ["/dns-proxy"]
CMD ["run", "--listen", "0.0.0.0:53"]
