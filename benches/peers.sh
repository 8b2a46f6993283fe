#!/usr/bin/env bash
# Compares makegate with nginx and haproxy: benches/peers.sh [BINARY] [ROUNDS] [SECONDS]
# Each runs on core 0 and does the same work (key, caller's rate, cache, request id, a record of every request); the client and a
# simulated Make run on core 1. Prints startup, hits, misses, memory, and hits on one and two cores; KEEP=FOLDER keeps logs and
# configurations there. Needs nginx, haproxy, wrk and python3. Loopback only. Compare within one run.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-target/release/makegate} rounds=${2:-5} seconds=${3:-5}
[[ -x $binary ]] || cargo build --release --locked
for tool in nginx haproxy wrk python3 curl; do
    command -v "$tool" > /dev/null || { echo "$tool is missing (apt-get install nginx haproxy wrk python3)" >&2; exit 2; }
done
binary=$(realpath "$binary") work=$(mktemp -d) pids=()
chmod 755 "$work"
tidy() { [[ -z ${KEEP:-} ]] || cp -r "$work" "$KEEP"; kill "${pids[@]}" 2> /dev/null || true; wait 2> /dev/null || true; rm -rf "$work"; }
trap tidy EXIT

key=peers-key path=/api/v2/organizations authorization="Authorization: Token peers-key"
declare -A port=([direct]=27640 [makegate]=27641 [nginx]=27643 [haproxy]=27644 [nginx2]=27645 [makegate2]=27646) server=() cores=0

cat > "$work/makegate.toml" <<CONFIG
[gateway]
listen = "127.0.0.1:${port[makegate]}"
[operator]
listen = "127.0.0.1:27642"
key_file = "secret"
[upstream]
url = "http://127.0.0.1:${port[direct]}"
token_file = "secret"
quota = "600000000/min"
[audit]
dir = "audit"
[[caller]]
name = "peers"
keys = ["sha256:$(printf %s $key | sha256sum | cut -d' ' -f1)"]
grants = ["*"]
rate = "1000000000/min"
burst = 1000000
CONFIG
printf peers-secret > "$work/secret"
cat > "$work/nginx.conf" <<CONFIG
daemon off;
pid $work/nginx.pid;
error_log $work/nginx.error warn;
worker_processes 1;
events { worker_connections 8192; }
http {
    map \$http_authorization \$caller { default ""; "Token $key" peers; }
    log_format record escape=json '{"time":"\$time_iso8601","id":"\$request_id","caller":"\$caller","path":"\$uri","status":\$status,"hit":"\$upstream_cache_status"}';
    access_log $work/nginx.access record buffer=64k flush=1s;
    limit_req_zone \$caller zone=rate:1m rate=1000000r/s;
    proxy_temp_path $work/temp;
    proxy_cache_path $work/cache keys_zone=memory:64m max_size=512m;
    upstream make { server 127.0.0.1:${port[direct]}; keepalive 32; }
    keepalive_requests 1000000000;
    server {
        listen 127.0.0.1:${port[nginx]} reuseport;
        location / {
            if (\$caller = "") { return 401; }
            limit_req zone=rate burst=1000000 nodelay;
            proxy_pass http://make;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "Token peers-secret";
            proxy_cache memory;
            proxy_cache_lock on;
            proxy_cache_valid 200 5m;
            proxy_ignore_headers Cache-Control Expires Set-Cookie;
            add_header X-Request-Id \$request_id;
        }
    }
}
CONFIG
cat > "$work/haproxy.cfg" <<CONFIG
global
    maxconn 8192
    nbthread 1
    log stdout format raw local0
defaults
    mode http
    log global
    option http-keep-alive
    timeout client 60s
    timeout server 60s
    timeout connect 5s
cache memory
    total-max-size 64
    max-age 300
    process-vary off
frontend door
    bind 127.0.0.1:${port[haproxy]}
    unique-id-format %{+X}o%ci:%cp_%Ts_%rt:%pid
    unique-id-header X-Request-Id
    log-format '{"time":"%Ts","id":"%ID","caller":"%[var(txn.caller)]","path":"%HP","status":%ST,"bytes":%B}'
    http-request set-var(txn.caller) req.hdr(authorization),word(2," "),map_str($work/callers)
    http-request deny deny_status 401 unless { var(txn.caller) -m found }
    stick-table type string len 32 size 1k expire 1m store http_req_rate(60s)
    http-request track-sc0 var(txn.caller)
    http-request deny deny_status 429 if { sc_http_req_rate(0) gt 1000000000 }
    http-request del-header Authorization
    http-request cache-use memory
    http-response cache-store memory
    http-response set-header Cache-Control max-age=300
    http-response set-header X-Request-Id %[unique-id]
    default_backend make
backend make
    http-request set-header Authorization "Token peers-secret"
    http-response set-header Cache-Control max-age=300
    server one 127.0.0.1:${port[direct]}
CONFIG
echo "$key peers" > "$work/callers"
cat > "$work/misses.lua" <<'LUA'
local n = tonumber(os.getenv("SEED"))
request = function() n = n + 1; return wrk.format("GET", "/api/v2/organizations?cols%5B%5D=id&cols%5B%5D=c" .. n) end
done = function(summary, latency)
    local e = summary.errors
    print("RESULT", summary.requests, latency:percentile(50), latency:percentile(99), e.status + e.connect + e.read + e.write + e.timeout)
end
LUA

up() { for ((i = 0; i < 300; i++)); do (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null && return; sleep 0.01; done; echo "nobody at port $1" >&2; exit 1; }
begin() { # NAME COMMAND…
    taskset -c $cores "${@:2}" > "$work/$1.out" 2> "$work/$1.err" &
    pids+=($!) server[$1]=$!
    up "${port[$1]}"
}
taskset -c 1 "$binary" sandbox --listen "127.0.0.1:${port[direct]}" --token peers-secret --api-limit 1000000000 \
    --account-limit 1000000000 > "$work/sandbox" 2>&1 &
pids+=($!)
up "${port[direct]}"
begin nginx nginx -c "$work/nginx.conf"
begin haproxy haproxy -f "$work/haproxy.cfg"
began=$(date +%s%N)
begin makegate "$binary" serve --config "$work/makegate.toml"
until curl -sf -o /dev/null -H "$authorization" "http://127.0.0.1:${port[makegate]}$path/11"; do sleep 0.002; done
printf 'makegate: first answer after %d ms; binary %d KiB\n' $((($(date +%s%N) - began) / 1000000)) $(($(stat -c %s "$binary") / 1024))

tree() { echo "$1"; for child in $(cat "/proc/$1/task/$1/children"); do tree "$child"; done; }
cpu_us() { for process in $(tree "${server[$1]}"); do cat "/proc/$process/stat"; done | awk '{sum += $14 + $15} END {print sum * 10000}'; }
memory_kib() { for process in $(tree "${server[$1]}"); do cat "/proc/$process/smaps_rollup"; done | awk '/^Pss:/ {sum += $2} END {print sum}'; }
records() { curl -sf http://127.0.0.1:27642/metrics | awk '/^makegate_audit_records_total/ {print $2}'; }
middle() { sort -n | awk '{value[NR] = $1} END {print value[int((NR + 1) / 2)]}'; }
column() { awk -v name="$2" -v field="$3" '$1 == name {print $field}' "$work/$1"; }

for ((round = 0; round <= rounds; round++)); do
    for name in nginx haproxy makegate; do
        before=$(cpu_us $name) stored=$(records)
        taskset -c 1 wrk -t1 -c32 -d"$((round ? seconds : 1))s" -H "$authorization" "http://127.0.0.1:${port[$name]}$path/11" > "$work/wrk"
        cost=$(($(cpu_us $name) - before)) requests=$(awk '/requests in/ {print $1}' "$work/wrk")
        ((round == 0)) || ! grep -qE "Non-2xx|Socket errors" "$work/wrk" || { echo "$name failed: $(cat "$work/wrk")" >&2; exit 1; }
        if [[ $name == makegate ]]; then
            sleep 1
            (($(records) - stored >= requests)) || { echo "$requests requests left $(($(records) - stored)) records" >&2; exit 1; }
        fi
        ((round == 0)) || awk -v n="$name" -v r="$requests" -v s="$seconds" -v c="$cost" 'BEGIN {print n, r / s, c / r}' >> "$work/hits"
    done
done
echo 'hits, 32 connections:'
for name in nginx haproxy makegate; do
    printf '  %-9s %7.0f/s  %6.2f µs of processor time each\n' $name "$(column hits $name 2 | middle)" "$(column hits $name 3 | middle)"
done
for name in nginx haproxy; do
    paste <(column hits makegate 2) <(column hits $name 2) | awk '{print $1 / $2}' | middle | xargs printf '  makegate / %s: %.2f\n' $name
done

seed=0
for connections in 1 16; do
    for ((round = 0; round <= rounds; round++)); do
        for name in direct nginx haproxy makegate; do
            seed=$((seed + 10000000)) header=$authorization before=0 after=0
            [[ $name == direct ]] && header='Authorization: Token peers-secret' || before=$(cpu_us $name)
            SEED=$seed taskset -c 1 wrk -t1 -c$connections -d"$((round ? seconds : 1))s" -H "$header" -s "$work/misses.lua" "http://127.0.0.1:${port[$name]}" > "$work/wrk"
            [[ $name == direct ]] || after=$(cpu_us $name)
            ((round == 0)) || awk -v n="$name" -v cost=$((after - before)) '/^RESULT/ {print n, $3, $4, cost / $2, $5}' "$work/wrk" >> "$work/misses.$connections"
        done
    done
    echo "misses, $connections connection(s), beside asking directly:"
    for name in nginx haproxy makegate; do
        [[ $(column misses.$connections $name 5 | sort -n | tail -1) == 0 ]] || { echo "$name failed" >&2; exit 1; }
        awk -v n=$name -v p50="$(column misses.$connections $name 2 | middle)" -v p99="$(column misses.$connections $name 3 | middle)" \
            -v d50="$(column misses.$connections direct 2 | middle)" -v d99="$(column misses.$connections direct 3 | middle)" \
            -v c="$(column misses.$connections $name 4 | middle)" \
            'BEGIN {printf "  %-9s p50 +%d µs, p99 +%d µs, %.1f µs of processor time each\n", n, p50 - d50, p99 - d99, c}'
    done
done

echo 'memory:'
cat > "$work/hold.py" <<'PYTHON'
import resource, socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = []
for _ in range(count):
    s = socket.create_connection(("127.0.0.1", port))
    s.sendall(b"GET /api/v2/organizations/11 HTTP/1.1\r\nHost: peers\r\nAuthorization: Token peers-key\r\n\r\n")
    assert s.recv(65536).startswith(b"HTTP/1.1 200"), "no answer"
    held.append(s)
print("held", flush=True)
sys.stdin.read()
PYTHON
for name in nginx haproxy makegate; do
    before=$(memory_kib $name)
    mkfifo "$work/hold.$name"
    python3 "$work/hold.py" "${port[$name]}" 1000 < "$work/hold.$name" > "$work/held" &
    holder=$!
    exec 8> "$work/hold.$name"
    for ((i = 0; i < 200; i++)); do grep -q held "$work/held" && break; sleep 0.05; done
    printf '  %-9s %d KiB after all this, and %.1f KiB for each of 1,000 open connections\n' $name "$before" \
        "$(awk -v b="$before" -v a="$(memory_kib $name)" 'BEGIN {print (a - b) / 1000}')"
    exec 8>&-
    wait $holder
done

# The client is on the same cores as the server both times: only so is one core beside two fair.
sed "s/worker_processes 1/worker_processes 2/; s/${port[nginx]}/${port[nginx2]}/; s#$work/cache#$work/cache2#; s#nginx.pid#nginx2.pid#" \
    "$work/nginx.conf" > "$work/nginx2.conf"
sed "s/:${port[makegate]}/:${port[makegate2]}/; s/:27642/:27647/; s/dir = \"audit\"/dir = \"audit2\"/" "$work/makegate.toml" > "$work/makegate2.toml"
cores=0,1
begin nginx2 nginx -c "$work/nginx2.conf"
begin makegate2 "$binary" serve --config "$work/makegate2.toml"
for ((round = 0; round <= rounds; round++)); do
    for name in nginx nginx2 makegate makegate2; do
        [[ $name == *2 ]] && on=0,1 || on=0
        before=$(cpu_us $name)
        taskset -c $on wrk -t$(((${#on} + 1) / 2)) -c32 -d"$((round ? seconds : 1))s" -H "$authorization" "http://127.0.0.1:${port[$name]}$path/11" > "$work/wrk"
        ((round == 0)) || awk -v n="$name" -v c=$(($(cpu_us $name) - before)) '/requests in/ {print n, c / $1}' "$work/wrk" >> "$work/cores"
    done
done
echo 'hits on two cores beside one, the client on the same, by processor time:'
for name in nginx makegate; do
    paste <(column cores $name 2) <(column cores ${name}2 2) | awk '{print 2 * $1 / $2}' | sort -n | tr '\n' ' ' |
        xargs -d '\n' printf '  %-9s %s(times one)\n' $name
done
