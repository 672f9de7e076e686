#!/bin/sh
# Secrets are files, and settings name variables (password_env, key_env): each file of /run/secrets whose name is that of a
# variable becomes one, in the process that is started and nowhere else. The description of the container has none.
set -eu
for file in /run/secrets/*; do
    case ${file##*/} in
        *[!A-Z0-9_]* | [0-9]*) ;; # a certificate, or no file at all
        *) export "${file##*/}=$(cat "$file")" ;;
    esac
done
exec "$@"
