#!/usr/bin/env bash
# Makes the pictures of docs/pictures from the demo: tests/browser/pictures.sh [BINARY]
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec node "$here/pictures.mjs" "$binary" "$root/docs/pictures"
