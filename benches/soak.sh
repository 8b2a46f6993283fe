#!/usr/bin/env bash
# Checks that memory stays flat under a mixed load: benches/soak.sh [BINARY] [MINUTES]
# Hits, misses, durable writes, refusals and idempotency keys over TLS, HTTP/2, connections that come and go or are cut off, an upstream
# that fails at times, queries, reloads: everything that grows at first has small limits here, which it reaches within minutes.
# Prints one line per minute. Fails if peak memory in the last third exceeds that of the middle third by more than 5 %, or the peak size
# of the log's folder by more than 10 %, or if descriptors leak.
# Needs wrk, h2load, curl and openssl. Loopback only.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-target/release/makegate} minutes=${2:-60}
[[ -x $binary ]] || cargo build --release --locked
for tool in wrk h2load curl openssl; do
    command -v "$tool" > /dev/null || { echo "$tool is missing (apt-get install wrk nghttp2-client curl openssl)" >&2; exit 2; }
done
binary=$(realpath "$binary") work=$(mktemp -d "${DISK:-${TMPDIR:-/tmp}}/soak.XXXXXX") pids=()
tidy() { kill "${pids[@]}" 2> /dev/null || true; wait 2> /dev/null || true; rm -rf "$work"; }
trap tidy EXIT

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$work/key.pem" -out "$work/cert.pem" -days 2 \
    -subj /CN=localhost 2> /dev/null
printf soak-token > "$work/token"
printf soak-operator > "$work/operator"
cat > "$work/makegate.toml" <<CONFIG
[gateway]
listen = "127.0.0.1:27660"
tls = { cert = "cert.pem", key = "key.pem" }
[operator]
listen = "127.0.0.1:27661"
key_file = "operator"
[upstream]
url = "http://127.0.0.1:27662"
token_file = "token"
quota = "60000000/min"
[cache]
capacity = "8MiB"
doubt = "5s"
settle = "2s"
[cache.lifetime]
organizations = "20s"
[audit]
dir = "audit"
segment = "8MiB"
retention_bytes = "128MiB"
head = "5s"
[limits]
idempotency_keys = 2000
$(for n in {1..50}; do
    cat <<CALLER
[[caller]]
name = "soak-$n"
keys = ["sha256:$(printf 'soak-key-%d' "$n" | sha256sum | cut -d' ' -f1)"]
grants = ["*"]
rate = "1000000000/min"
burst = 1000000
CALLER
done)
CONFIG
cat > "$work/mix.lua" <<'LUA'
local n = tonumber(os.getenv("SEED"))
math.randomseed(n)
local root = "/api/v2/organizations"
local function headers(more)
    local all = { Authorization = "Token soak-key-" .. math.random(50) }
    for name, value in pairs(more or {}) do all[name] = value end
    return all
end
local json = { ["Content-Type"] = "application/json" }
delay = function() return math.random(0, 40) end
request = function()
    n = n + 1
    local dice = math.random(100)
    local organization = root .. "/" .. math.random(11, 15)
    if dice > 88 and dice <= 94 and os.time() % 60 > 20 then dice = 84 end -- what writes make untrue has time to fill the memory
    if dice <= 70 then return wrk.format("GET", organization, headers()) end
    if dice <= 84 then return wrk.format("GET", root .. "?cols%5B%5D=id&cols%5B%5D=c" .. n, headers()) end
    if dice <= 88 then return wrk.format("GET", organization .. "/usage", headers()) end
    if dice <= 92 then return wrk.format("PATCH", organization, headers(json), '{"name":"Soaked ' .. n .. '"}') end
    if dice <= 94 then
        return wrk.format("PATCH", organization, headers({ ["Content-Type"] = "application/json", ["Idempotency-Key"] = "k" .. n }), '{"name":"Once"}')
    end
    if dice <= 96 then return wrk.format("GET", organization, headers({ ["Cache-Control"] = "no-cache" })) end
    if dice <= 97 then return wrk.format("GET", organization, { Authorization = "Token nobody-" .. n }) end
    if dice <= 98 then return wrk.format("GET", "/api/v2/nothing/" .. n, headers()) end
    if dice <= 99 then return wrk.format("GET", root .. "/" .. 1000 + n % 1000, headers()) end
    return wrk.format("GET", organization .. "?unknown" .. n .. "=1", headers())
end
LUA

up() { for ((i = 0; i < 300; i++)); do (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null && return; sleep 0.01; done; echo "nobody at port $1" >&2; exit 1; }
"$binary" sandbox --listen 127.0.0.1:27662 --token soak-token --api-limit 1000000000 --account-limit 1000000000 > "$work/sandbox" 2>&1 &
pids+=($!)
MAKEGATE_LOG=error "$binary" serve --config "$work/makegate.toml" > "$work/log" 2>&1 &
pids+=($!)
gateway=$!
up 27662
up 27660

door=https://127.0.0.1:27660/api/v2/organizations key='Authorization: Token soak-key-1' operator='Authorization: Bearer soak-operator'
metric() { awk -v name="$1" '$1 ~ "^" name "($|{)" {sum += $2} END {printf "%d", sum}' "$work/metrics"; }
status() { awk -v name="$1:" '$1 == name {print $2}' "/proc/$gateway/status"; }
began=$SECONDS
columns='%6s %9s %9s %9s %8s %6s %8s %6s %7s\n'
printf "$columns" minute anon_KiB rss_KiB log_KiB files doubts keys cached requests
for ((minute = 1; minute <= minutes; minute++)); do
    SEED=$((minute * 100000000)) wrk -t1 -c32 -d55s -s "$work/mix.lua" https://127.0.0.1:27660 > "$work/wrk" 2>&1 &
    mix=$!
    for kind in '{"answer":{"status":503}}' '{"reset":{"effect":true}}' '{"latency":{"ms":3000}}'; do
        curl -sf -o /dev/null -X POST http://127.0.0.1:27662/sandbox/faults -d '{"path":"/api/v2/**","times":10,"kind":'"$kind}"
    done
    h2load -t1 -c20 -m16 -n20000 -H "$key" "$door/11" > /dev/null 2>&1 || true
    wrk -t1 -c50 -d2s -H "$key" -H 'Connection: close' "$door/12" > /dev/null 2>&1 || true
    wrk -t1 -c200 -d5s -H "$key" "$door/13" > /dev/null 2>&1 &
    sleep 1
    kill -KILL $!
    wait $! 2> /dev/null || true
    for filter in caller=soak-7 kind=outcome organization=12 status=503; do
        curl -sf -o /dev/null -H "$operator" "http://127.0.0.1:27661/audit?$filter&limit=1000" || true
    done
    kill -HUP "$gateway"
    wait "$mix" || { cat "$work/wrk"; exit 1; }
    until ((SECONDS - began >= minute * 60 - 1)); do sleep 1; done
    kill -0 "$gateway" || { echo 'makegate ended' >&2; tail "$work/log" >&2; exit 1; }
    curl -sf http://127.0.0.1:27661/metrics > "$work/metrics"
    files=("/proc/$gateway/fd"/*)
    (($(metric makegate_faults_total) + $(metric makegate_audit_unrecorded_total) == 0)) || { echo 'panics, or no records' >&2; exit 1; }
    printf "$columns" "$minute" "$(status RssAnon)" "$(status VmRSS)" "$(du -sk "$work/audit" | cut -f1)" "${#files[@]}" \
        "$(metric makegate_writes_in_doubt)" "$(metric makegate_idempotency_keys)" "$(metric makegate_cache_entries)" \
        "$(metric makegate_requests_total)" | tee -a "$work/table"
done
awk -v minutes="$minutes" '
    $1 > minutes / 3 && $1 <= 2 * minutes / 3 {if ($2 > middle) middle = $2; if ($4 > small) small = $4; if ($5 > few) few = $5}
    $1 > 2 * minutes / 3 {if ($2 > last) last = $2; if ($4 > large) large = $4; if ($5 > many) many = $5}
    END {
        printf "most memory: %d KiB in the middle third, %d KiB in the last\n", middle, last
        if (last > middle * 1.05) {print "memory grows"; exit 1}
        if (large > small * 1.1) {print "the log outgrows its retention"; exit 1}
        if (many > few + 20) {print "descriptors are left over"; exit 1}
    }' "$work/table"
