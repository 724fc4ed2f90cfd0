# A static binary in an image with nothing else but the system's root certificates.
#
#   docker build -t dns-proxy .
#   docker run -p 53:53/udp -p 53:53/tcp dns-proxy
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
        ca-certificates cargo-web gcc libc6-dev
WORKDIR /src
COPY . .
RUN cargo xtask setup
RUN RUSTFLAGS='-C target-feature=+crt-static' \
        cargo build --release --locked -p dns-proxy --target "$(rustc --print host-tuple)" && \
    cp "target/$(rustc --print host-tuple)/release/dns-proxy" /dns-proxy

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /dns-proxy /dns-proxy
EXPOSE 53/udp 53/tcp
ENTRYPOINT ["/dns-proxy"]
CMD ["run", "--listen", "0.0.0.0:53"]
