#!/bin/sh
# Makes the secrets of this mesh, once: the audit key, the database password, and the key that signs checkpoints. They live in volumes
# that only the containers of this project mount, and survive as long as the data they belong to. The signing key has a volume
# of its own, which the database's container does not mount.
set -eu
umask 022
for secret in /run/mesh/audit.key:32 /run/mesh/postgres.password:16 /run/signing/checkpoint.key:32; do
  file=${secret%:*}
  if [ ! -s "$file" ]; then
    od -An -v -tx1 -N"${secret#*:}" /dev/urandom | tr -d ' \n' >"$file.new"
    mv "$file.new" "$file"
  fi
done
if [ ! -s /run/mesh/checkpoint.pub ]; then
  audit-archiver checkpoint-key --checkpoint-key-file /run/signing/checkpoint.key >/run/mesh/checkpoint.pub.new
  mv /run/mesh/checkpoint.pub.new /run/mesh/checkpoint.pub
fi
