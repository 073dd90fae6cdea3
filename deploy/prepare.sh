#!/bin/sh
# Makes the secrets of this mesh, once: the audit key and the database password. They live in a volume that only the
# containers of this project mount, and survive as long as the data they belong to.
set -eu
umask 022
for secret in audit.key:32 postgres.password:16; do
  file=/run/mesh/${secret%:*}
  if [ ! -s "$file" ]; then
    od -An -v -tx1 -N"${secret#*:}" /dev/urandom | tr -d ' \n' >"$file.new"
    mv "$file.new" "$file"
  fi
done
