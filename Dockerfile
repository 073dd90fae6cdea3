# The binaries of the mesh, built from source, in one small image. What runs in it is chosen by the command.

ARG RUST_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${RUNTIME_IMAGE} AS runtime
# The folders are made here so that the volumes mounted on them belong to this user from the start.
RUN groupadd --gid 10001 mesh \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin mesh \
    && install -d -o mesh -g mesh -m 0755 /run/mesh /run/signing /var/lib/nats /var/lib/mesh/checkpoints
COPY deploy/entrypoint.sh deploy/prepare.sh deploy/healthcheck.sh /usr/local/bin/
COPY mesh.toml /etc/mesh/mesh.toml
USER 10001:10001
ENV MESH_POLICY=/etc/mesh/mesh.toml \
    MESH_AUDIT_KEY_FILE=/run/mesh/audit.key \
    MESH_HTTP=0.0.0.0:7070
ENTRYPOINT ["entrypoint.sh"]
CMD ["mesh", "--help"]

FROM ${RUST_IMAGE} AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked --workspace --bins \
    && mkdir /binaries \
    && for name in coordinator audit-archiver loadgen mesh real-estate; do strip -o "/binaries/$name" "target/release/$name"; done

FROM runtime AS mesh
COPY --from=build /binaries/ /usr/local/bin/
