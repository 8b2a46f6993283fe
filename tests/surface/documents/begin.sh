# Stands before the commands of every page.
set -euo pipefail
at_end() { :; }
trap 'at_end; jobs -p | xargs -r kill 2> /dev/null || true; cat "$HOME/pid" 2> /dev/null | xargs -r kill 2> /dev/null || true' EXIT

# ended CODE EXPECTED
ended() {
    [[ $1 == "$2" ]] || { echo "@@ exit code $1, not $2"; exit 1; }
}

# Waits until there is an answer at a URL.
until_ready() {
    local i
    for ((i = 0; i < 1200; i++)); do
        curl -sk -o /dev/null "$1" && return
        sleep 0.05
    done
    echo "@@ exit code of what keeps running: there is no answer at $1"
    exit 1
}

