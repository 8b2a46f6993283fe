#!/usr/bin/env bash
# Counts instructions per hit, miss and write, including records and index: benches/instructions.sh [BINARY] [check]
# Counted by callgrind with one connection, so results are stable, unlike times. With `check` it fails above the bounds below.
# callgrind does not support SHA extensions: on CPUs that have them, hashing takes less than counted here. Loopback only.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=target/release/makegate check=
for argument; do if [[ $argument == check ]]; then check=1; else binary=$argument; fi; done
[[ -x $binary ]] || cargo build --release --locked
command -v valgrind > /dev/null || { echo 'valgrind is missing (apt-get install valgrind)' >&2; exit 2; }
binary=$(realpath "$binary") work=$(mktemp -d) pids=()
tidy() { kill "${pids[@]}" 2> /dev/null || true; wait 2> /dev/null || true; rm -rf "$work"; }
trap tidy EXIT

# The number of requests of each kind, and the maximum instructions of each.
count=1000
declare -A most=([hit]=65000 [miss]=162000 [write]=300000)

printf count-token > "$work/token"
printf count-operator > "$work/operator"
cat > "$work/makegate.toml" <<CONFIG
[gateway]
listen = "127.0.0.1:27620"
[operator]
listen = "127.0.0.1:27621"
key_file = "operator"
[upstream]
url = "http://127.0.0.1:27622"
token_file = "token"
quota = "600000/min"
[audit]
dir = "audit"
[[caller]]
name = "count"
keys = ["sha256:$(printf %s count-key | sha256sum | cut -d' ' -f1)"]
grants = ["*"]
rate = "1000000000/min"
burst = 1000000
CONFIG
up() { for ((i = 0; i < 300; i++)); do (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null && return; sleep 0.1; done; return 1; }
"$binary" sandbox --listen 127.0.0.1:27622 --token count-token --api-limit 1000000 --account-limit 1000000 > "$work/sandbox.log" 2>&1 &
pids+=($!)
valgrind --tool=callgrind --instr-atstart=no --callgrind-out-file="$work/out" \
    "$binary" serve --config "$work/makegate.toml" > "$work/log" 2>&1 &
pids+=($!)
gateway=$!
up 27620 || { cat "$work/log" >&2; exit 1; }

ask() { # COUNT CURL-ARGUMENTS…: so many requests over one connection, each answered with 200
    local good
    good=$(curl --silent --show-error --max-time 300 --write-out '%{http_code}\n' --output /dev/null \
        --header 'Authorization: Token count-key' "${@:2}" | grep -c '^200$' || true)
    [[ $good == "$1" ]] || { echo "$good of $1 requests were answered well: ${*:2}" >&2; exit 1; }
}
organizations=http://127.0.0.1:27620/api/v2/organizations
hit() { ask "$1" "$organizations/11#[1-$1]"; }
miss() { ask "$1" "$organizations?cols%5B%5D=id&cols%5B%5D=$2[1-$1]"; }
write() { ask "$1" --request PATCH --header 'Content-Type: application/json' --data '{"name":"Counted"}' "$organizations/11#[1-$1]"; }

control() { callgrind_control "$@" "$gateway" > /dev/null 2>&1; }
dumps=0 failed=
for kind in hit miss write; do
    "$kind" 100 warm
    control -i on
    "$kind" "$count" count
    sleep 1 # the records' writer and their index come by
    control -i off
    control -d "$kind"
    dumps=$((dumps + 1))
    spent=$(sed -nE "s/^totals: ([0-9]+).*/\1/p" "$work/out.$dumps")
    each=$((spent / count))
    printf '%-6s %8d instructions (at most %d)\n' "$kind" "$each" "${most[$kind]}"
    ((each <= most[$kind])) || failed="$failed $kind"
done
[[ -z $check || -z $failed ]] || { echo "too many instructions:$failed" >&2; exit 1; }
