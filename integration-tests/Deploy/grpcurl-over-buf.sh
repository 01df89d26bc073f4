#!/usr/bin/env bash
# Stands in for grpcurl on machines that have buf: translates the arguments that the examples use to `buf curl`.
set -euo pipefail
arguments=(--protocol grpc --http2-prior-knowledge)
rest=()
while [ $# -gt 0 ]; do
  case $1 in
    -plaintext) shift ;;
    -d) arguments+=(--data "$2"); shift 2 ;;
    -H) arguments+=(--header "$2"); shift 2 ;;
    -*) echo "grpcurl-over-buf: $1 is not translated" >&2; exit 64 ;;
    *) rest+=("$1"); shift ;;
  esac
done
server=${rest[0]}
case ${rest[1]:-} in
  list) exec buf curl "${arguments[@]}" --list-services "http://$server" ;;
  *) exec buf curl "${arguments[@]}" "http://$server/${rest[1]}" ;;
esac
