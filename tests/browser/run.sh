#!/usr/bin/env bash
# Looks at every operator page in a real browser: tests/browser/run.sh [BINARY [PART-OF-A-PATH]]
#
# It starts the demo, sends it requests, and opens each page narrow and wide, light and dark, with and without script.
# It needs chromium, Node.js 18 or later, and npm, which brings the two packages of package.json.
# Screenshots: target/browser.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec node "$here/main.mjs" "$binary" "$root" "${@:2}"
