#!/bin/sh
# Puts the database password, which the containers share as a file, into the address that the binaries read.
set -eu
if [ -n "${MESH_POSTGRES_HOST:-}" ] && [ -r /run/mesh/postgres.password ]; then
  MESH_POSTGRES_URL="postgres://mesh:$(cat /run/mesh/postgres.password)@$MESH_POSTGRES_HOST/mesh"
  export MESH_POSTGRES_URL
fi
exec "$@"
