#!/usr/bin/env bash
# What `make check` needs to look at the report in a real browser (Debian and its kin; as root).
set -euo pipefail
apt-get update
apt-get install -y --no-install-recommends chromium fonts-dejavu-core
