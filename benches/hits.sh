#!/usr/bin/env bash
# Measures the cost of a hit: benches/hits.sh [BINARY] [ROUNDS] [SECONDS]
# One core for makegate, another for the client (wrk; h2load for HTTP/2, if installed). Prints requests per second and makegate's
# CPU time per request including records, and fails if a record is missing. Loopback only.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-target/release/makegate} rounds=${2:-3} seconds=${3:-4}
[[ -x $binary ]] || cargo build --release --locked
command -v wrk > /dev/null || { echo 'wrk is missing (apt-get install wrk)' >&2; exit 2; }
binary=$(realpath "$binary") work=$(mktemp -d) pids=()
tidy() { kill "${pids[@]}" 2> /dev/null || true; wait 2> /dev/null || true; rm -rf "$work"; }
trap tidy EXIT

key=hits-key target=/api/v2/organizations/11
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$work/key.pem" -out "$work/cert.pem" -days 2 \
    -subj /CN=localhost 2> /dev/null
printf hits-token > "$work/token"
printf hits-operator > "$work/operator"
configure() { # NAME PORT TLS
    cat > "$work/$1.toml" <<CONFIG
[gateway]
listen = "127.0.0.1:$2"
$3
[operator]
listen = "127.0.0.1:$(($2 + 1))"
key_file = "operator"
[upstream]
url = "http://127.0.0.1:27600"
token_file = "token"
[cache.lifetime]
organizations = "1h"
[audit]
dir = "$1"
[[caller]]
name = "hits"
keys = ["sha256:$(printf %s $key | sha256sum | cut -d' ' -f1)"]
grants = ["*"]
rate = "1000000000/min"
burst = 1000000
CONFIG
}
configure plain 27610 ''
configure tls 27620 'tls = { cert = "cert.pem", key = "key.pem" }'
"$binary" sandbox --listen 127.0.0.1:27600 --token hits-token > "$work/sandbox.log" 2>&1 & pids+=($!)
declare -A server
for name in plain tls; do
    taskset -c 0 "$binary" serve --config "$work/$name.toml" > "$work/$name.log" 2>&1 & pids+=($!)
    server[$name]=$!
done
for port in 27611 27621; do
    for ((i = 0; i < 100; i++)); do curl -sf -o /dev/null "http://127.0.0.1:$port/readyz" && break; sleep 0.1; done
done

cpu_us() { awk '{print ($14 + $15) * 10000}' "/proc/$1/stat"; }
records() { curl -sf "http://127.0.0.1:$1/metrics" | awk '/^makegate_audit_records_total/ {print $2}'; }
run() { # WORDS NAME OPERATOR-PORT COMMAND...
    local words=$1 name=$2 door=$3 rates=() costs=()
    shift 3
    for ((round = 0; round <= rounds; round++)); do
        local before cost stored requests rate
        before=$(records "$door") cost=$(cpu_us "${server[$name]}")
        taskset -c 1 "$@" > "$work/out" 2>&1
        cost=$(($(cpu_us "${server[$name]}") - cost))
        sleep 1
        stored=$(($(records "$door") - before))
        requests=$(sed -nE 's/^ *([0-9]+) requests in.*/\1/p; s/^requests: [0-9]+ total, [0-9]+ started, ([0-9]+) done.*/\1/p' "$work/out" | head -1)
        ((stored >= requests)) || { echo "$words: $requests requests left $stored records" >&2; exit 1; }
        ((round)) || continue # the first one warms up
        rates+=($((requests / seconds)))
        costs+=("$(awk -v c="$cost" -v n="$requests" 'BEGIN {printf "%.2f", c / n}')")
    done
    middle() { printf '%s\n' "$@" | sort -n | sed -n "$(($# / 2 + 1))p"; }
    printf '%-44s %8s/s  %6s µs\n' "$words" "$(middle "${rates[@]}")" "$(middle "${costs[@]}")"
}
authorization="Authorization: Token $key"
curl -sf -o /dev/null -H "$authorization" "http://127.0.0.1:27610$target"
etag=$(curl -sf -o /dev/null -w '%header{etag}' -H "$authorization" "http://127.0.0.1:27610$target")
curl -skf -o /dev/null -H "$authorization" "https://127.0.0.1:27620$target"
plain=(wrk -t1 -c32 -d"${seconds}s" -H "$authorization" "http://127.0.0.1:27610$target")
run 'hit, HTTP/1.1, 32 connections' plain 27611 "${plain[@]}"
run 'the same with If-None-Match: 304' plain 27611 "${plain[@]}" -H "If-None-Match: $etag"
run 'hit, HTTP/1.1 over TLS, 32 connections' tls 27621 wrk -t1 -c32 -d"${seconds}s" -H "$authorization" "https://127.0.0.1:27620$target"
if command -v h2load > /dev/null; then
    run 'hit, HTTP/2 over TLS, 8 x 16 streams' tls 27621 h2load -t1 -c8 -m16 -D "$seconds" -H "$authorization" "https://127.0.0.1:27620$target"
fi
