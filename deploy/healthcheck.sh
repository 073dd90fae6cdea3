#!/bin/bash
# Asks the process in this container over HTTP: healthcheck.sh PORT PATH. True when it answers 200.
set -eu
exec 3<>"/dev/tcp/127.0.0.1/$1"
printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$2" >&3
IFS= read -r -t 3 line <&3
case $line in
  'HTTP/1.'?' 200 '*) ;;
  *)
    printf '%s\n' "$line"
    exit 1
    ;;
esac
