#!/usr/bin/env bash
# What several replicas cost: benches/replicas.sh [BINARY] [ROUNDS] [OPERATIONS]
# Starts a PostgreSQL of its own and a simulated Make, and prints, as tables for docs/performance.md: processor time per hit without and
# with [replicas]; what 1, 3 and 10 replicas add to a miss and to a write (p50, p99, one connection), and the processor time of PostgreSQL
# for each; and how much of Make's quota three replicas use that all want it, as the simulated Make counts it (two and a half minutes).
# PARTS="hits latencies quota" selects. The hits are counted in processor time, in turns, because the machine's time since its start, by
# which a lease is counted, cannot be read under valgrind. PostgreSQL syncs to the disk of DISK (a folder; by default the temporary one).
# Needs PostgreSQL (initdb, postgres, psql), curl and python3. Loopback only. Compare within one run.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-target/release/makegate} rounds=${2:-5} operations=${3:-1000}
[[ -x $binary ]] || cargo build --release --locked
for folder in /usr/lib/postgresql/*/bin; do PATH=$PATH:$folder; done
for tool in initdb postgres psql curl python3; do
    command -v "$tool" > /dev/null || { echo "$tool is missing (apt-get install postgresql curl python3)" >&2; exit 2; }
done
binary=$(realpath "$binary") work=$(mktemp -d "${DISK:-${TMPDIR:-/tmp}}/replicas.XXXXXX") pids=() engine=
chmod 755 "$work"
stop() { ((${#pids[@]} == 0)) || { kill "${pids[@]}" 2> /dev/null || true; wait "${pids[@]}" 2> /dev/null || true; pids=(); }; }
tidy() { stop; [[ -z $engine ]] || { kill -QUIT "$engine" 2> /dev/null && wait "$engine" 2> /dev/null || true; }; rm -rf "$work"; }
trap tidy EXIT
up() { for ((i = 0; i < 600; i++)); do (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null && return; sleep 0.05; done; echo "nobody at port $1" >&2; exit 1; }

make=27800 database=27801 operator=27840 gateway=27820
as=()
[[ $(id -u) != 0 ]] || { chown nobody "$work"; as=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups); }
"${as[@]}" initdb -D "$work/data" -U makegate -A trust > "$work/initdb" 2>&1 || { cat "$work/initdb" >&2; exit 1; }
"${as[@]}" "$(command -v postgres)" -D "$work/data" -p $database -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c max_connections=100 > "$work/postgres" 2>&1 &
engine=$!
up $database
sql() { psql -qAt -h 127.0.0.1 -p $database -U makegate -d "$1" -c "$2"; }
until sql postgres 'select 1' > /dev/null 2>&1; do sleep 0.05; done

sandbox() { # CALLS-PER-MINUTE
    "$binary" sandbox --listen 127.0.0.1:$make --token bench-token --api-limit "$1" --account-limit "$1" > "$work/sandbox" 2>&1 &
    pids+=($!)
    up $make
}
configure() { # NUMBER QUOTA [LINES]
    mkdir -p "$work/$1"
    printf bench-token > "$work/$1/token"
    printf bench-operator > "$work/$1/operator"
    printf 'postgresql://makegate@127.0.0.1:%d/bench?sslmode=disable' $database > "$work/$1/engine"
    cat > "$work/$1/makegate.toml" <<CONFIG
[gateway]
listen = "127.0.0.1:$((gateway + $1))"
[operator]
listen = "127.0.0.1:$((operator + $1))"
key_file = "operator"
[upstream]
url = "http://127.0.0.1:$make"
token_file = "token"
quota = "$2/min"
quota_wait = "20s"
[audit]
dir = "audit"
[[caller]]
name = "bench"
keys = ["sha256:$(printf bench-key | sha256sum | cut -d' ' -f1)"]
grants = ["*"]
rate = "100000000/min"
burst = 1000000
${3:-}
CONFIG
    chmod 600 "$work/$1"/{token,operator,engine}
}
serve() { # NUMBER
    "$binary" serve --config "$work/$1/makegate.toml" > "$work/$1/log" 2>&1 &
    pids+=($!) server[$1]=$!
    up $((gateway + $1))
}
declare -A server=()
fleet() { # COUNT QUOTA: so many replicas with a new database, each ready to read and write
    psql -qAt -h 127.0.0.1 -p $database -U makegate -d postgres -c 'drop database if exists bench with (force)' -c 'create database bench' 2> /dev/null
    rm -rf "$work"/[0-9]*
    for ((n = 0; n < $1; n++)); do
        configure $n "$2" "[replicas]
url_file = \"engine\"
name = \"replica-$n\"
key_file = \"replicas.key\""
        if ((n == 0)); then
            "$binary" replicas init --config "$work/0/makegate.toml" > "$work/init" 2>&1 || { cat "$work/init" >&2; exit 1; }
        else
            cp -p "$work/0/replicas.key" "$work/$n/"
        fi
    done
    for ((n = 0; n < $1; n++)); do serve $n; done
    for ((n = 0; n < $1; n++)); do ready $n; done
}
ready() { # NUMBER: it reads and writes
    for ((i = 0; i < 600; i++)); do
        if curl -sf -o /dev/null -H "$key" -H 'Cache-Control: no-cache' "$(door "$1")/12" &&
            curl -sf -o /dev/null -H "$key" -X PATCH -H 'Content-Type: application/json' -d '{"name":"Ready"}' "$(door "$1")/12"; then
            return
        fi
        sleep 0.1
    done
    echo "replica $1 does not get ready" >&2
    tail -5 "$work/$1/log" >&2
    exit 1
}
key='Authorization: Token bench-key'
door() { echo "http://127.0.0.1:$((gateway + $1))/api/v2/organizations"; }

# Nanoseconds on a processor, of a process and those that it started.
spent_ns() { cat "/proc/$1/task"/*/schedstat $(for child in $(cat "/proc/$1/task/$1/children"); do echo /proc/"$child"/schedstat; done) 2> /dev/null | awk '{sum += $1} END {printf "%.0f", sum}'; }
middle() { sort -n | awk '{value[NR] = $1} END {print value[int((NR + 1) / 2)]}'; }

parts=" ${PARTS:-hits latencies quota} "

# Hits: two makegates in turns, each asked the same.
hits() {
    sandbox 1000000000
    fleet 1 60000000
    configure 15 60000000
    serve 15
    ready 15
    sleep 11 # what is fetched sooner after a start or a write is kept for the rest of cache.settle alone
    local hits=20000 round n before after good alone shared
    for ((round = 0; round <= rounds; round++)); do
        for n in 15 0; do
            curl -sf -o /dev/null -H "$key" "$(door $n)/11"
            before=$(spent_ns "${server[$n]}")
            good=$(curl -s -o /dev/null -w '%{http_code} %header{cache-status}\n' -H "$key" "$(door $n)/11#[1-$hits]" | grep -c '^200 makegate; hit' || true)
            after=$(spent_ns "${server[$n]}")
            ((good == hits)) || { echo "$good of $hits were hits" >&2; exit 1; }
            ((round == 0)) || echo $(((after - before) / hits)) >> "$work/hit.$n"
        done
    done
    alone=$(middle < "$work/hit.15") shared=$(middle < "$work/hit.0")
    printf '| a hit, one connection | processor time |\n| --- | --- |\n'
    awk -v a="$alone" -v s="$shared" 'BEGIN {
        printf "| without `[replicas]` | %.1f µs |\n| with it | %.1f µs (%+.1f %%) |\n\n", a / 1000, s / 1000, 100 * (s - a) / a}'
}

latencies() {
    # Misses and writes over one connection, each waiting for the one before.
    cat > "$work/load.py" <<'PYTHON'
import http.client, sys, time
port, kind, count, seed = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
headers = {"Authorization": "Token bench-key"}
connection, took = http.client.HTTPConnection("127.0.0.1", port), []
for n in range(count):
    began = time.perf_counter()
    if kind == "miss":
        connection.request("GET", f"/api/v2/organizations?cols%5B%5D=id&cols%5B%5D={seed}{n}", headers=headers)
    else:
        body = '{"name":"%s %d"}' % (seed, n)
        connection.request("PATCH", "/api/v2/organizations/11", body, headers | {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    took.append(time.perf_counter() - began)
    if answer.status != 200:
        sys.exit(f"{kind} {n}: {answer.status}")
took.sort()
print(*(round(took[int(len(took) * part)] * 1e6) for part in (0.5, 0.99)))
PYTHON
    measure() { # WORDS NUMBER
        local words=$1 n=$2 kind idle took before cost began p50 p99
        for kind in miss write; do
            python3 "$work/load.py" $((gateway + n)) $kind 100 "warm$RANDOM" > /dev/null
            before=$(spent_ns "$engine")
            sleep 2
            idle=$((($(spent_ns "$engine") - before) / 2))
            before=$(spent_ns "$engine") began=$(date +%s%N)
            python3 "$work/load.py" $((gateway + n)) $kind "$operations" "c$RANDOM$RANDOM" > "$work/took" || exit 1
            took=$(($(date +%s%N) - began)) cost=$(($(spent_ns "$engine") - before))
            read -r p50 p99 < "$work/took"
            echo "$words $kind $p50 $p99 $cost $((idle / 1000 * (took / 1000000) / 1000))" >> "$work/latencies"
        done
    }
    local round count words kind
    for ((round = 1; round <= (rounds + 2) / 3; round++)); do
        stop
        sandbox 1000000000
        configure 15 60000000
        serve 15
        ready 15
        measure none 15
        for count in 1 3 10; do
            stop
            sandbox 1000000000
            fleet $count 60000000
            measure $count 0
        done
    done
    printf '| replicas | a miss: p50, p99 | added | a write: p50, p99 | added | PostgreSQL, of a miss | of a write |\n'
    printf '| --- | --- | --- | --- | --- | --- | --- |\n'
    cell() { awk -v w="$1" -v k="$2" -v f="$3" '$1 == w && $2 == k {print $f}' "$work/latencies" | middle; }
    for words in none 1 3 10; do
        printf '| %s |' "${words/none/without \`[replicas]\`}"
        for kind in miss write; do
            awk -v p50="$(cell $words $kind 3)" -v p99="$(cell $words $kind 4)" -v d50="$(cell none $kind 3)" -v d99="$(cell none $kind 4)" -v w=$words \
                'BEGIN {printf " %.2f ms, %.2f ms | ", p50 / 1000, p99 / 1000; if (w != "none") printf "%+.2f, %+.2f ms", (p50 - d50) / 1000, (p99 - d99) / 1000; printf " |"}'
        done
        for kind in miss write; do
            awk -v w=$words -v cost="$(cell $words $kind 5)" -v idle="$(cell $words $kind 6)" -v n="$operations" \
                'BEGIN {if (w == "none") printf "  |"; else printf " %.0f µs |", (cost - idle) / 1000 / n}'
        done
        printf '\n'
    done
    printf '\n'
}

# The quota: three replicas, each asked for more than all of it.
quota() {
    local quota=240 last count refused wanting
    stop
    sandbox $quota
    fleet 3 $quota
    sleep 62 # what getting ready took is free again
    cat > "$work/want.py" <<'PYTHON'
import http.client, sys, threading, time
ports, seconds = [int(port) for port in sys.argv[1].split(",")], float(sys.argv[2])
end, statuses, lock = time.monotonic() + seconds, {}, threading.Lock()
def want(port, worker):
    n = 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.monotonic() < end:
        n += 1
        connection.request("GET", f"/api/v2/organizations/11?cols%5B%5D=w{worker}x{n}", headers={"Authorization": "Token bench-key", "Cache-Control": "no-cache"})
        answer = connection.getresponse()
        answer.read()
        with lock:
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
        if answer.status != 200:
            time.sleep(0.2)
threads = [threading.Thread(target=want, args=(port, f"{port}a{k}")) for port in ports for k in range(30)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(statuses)
PYTHON
    cat > "$work/received.py" <<'PYTHON'
import json, sys
rows = json.load(sys.stdin)["received"]
print(len(rows), sum(row["status"] == 429 for row in rows), rows[-1]["number"] if rows else 0)
PYTHON
    received() { curl -sf "http://127.0.0.1:$make/sandbox/received?after=$1&limit=100000" | python3 "$work/received.py"; }
    read -r _ _ last < <(received 0)
    python3 "$work/want.py" "$((gateway)),$((gateway + 1)),$((gateway + 2))" 75 > "$work/wanted" &
    wanting=$!
    sleep 10
    read -r _ _ last < <(received "$last")
    sleep 60
    read -r count refused _ < <(received "$last")
    wait $wanting
    printf 'quota: Make received %d of %d requests in a minute (%.1f %%), and refused %d; callers got %s\n' \
        "$count" $quota "$(awk -v c="$count" -v q=$quota 'BEGIN {print 100 * c / q}')" "$refused" "$(cat "$work/wanted")"
}

for part in hits latencies quota; do
    [[ $parts != *" $part "* ]] || { stop; $part; }
done
