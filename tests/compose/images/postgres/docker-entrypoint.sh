#!/bin/bash
# What docker-compose.yml uses of the official image's entrypoint: a cluster at the first start, with a user, a password
# from a file and a database, made by a temporary server that listens on a Unix socket only.
set -euo pipefail

if [[ ! -s $PGDATA/PG_VERSION ]]; then
  # shellcheck disable=SC2086  # several arguments in one variable, as the official image has it
  initdb --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" --no-instructions ${POSTGRES_INITDB_ARGS:-}
  printf 'host all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
  pg_ctl -D "$PGDATA" -w -o "-c listen_addresses='' -c unix_socket_directories=/tmp" start
  PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE") createdb -h /tmp -U "$POSTGRES_USER" -T template0 "$POSTGRES_DB"
  pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec "$@"
