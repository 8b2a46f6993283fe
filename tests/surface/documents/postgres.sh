# Beside a PostgreSQL that the page starts and stops, with a user, a database and a password like that of the page's container.
mkdir "$HOME/postgres"
chmod go+x "$HOME"
as=()
if [[ $(id -u) == 0 ]]; then
    # PostgreSQL refuses to run as root.
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups)
    chown postgres:postgres "$HOME/postgres"
fi
programs=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t / -k 5 -n | tail -1)

postgres() {
    (cd / && exec "${as[@]}" "$programs/$@")
}

postgres_start() {
    local data=$HOME/postgres/data address=127.0.0.1:5432 i
    if [[ ! -d $data ]]; then
        printf secret > "$HOME/postgres/password"
        postgres initdb -D "$data" -U makegate -A scram-sha-256 --pwfile="$HOME/postgres/password" --no-sync > "$HOME/postgres.log"
        echo 'create database makegate' | postgres postgres --single -D "$data" postgres >> "$HOME/postgres.log"
    fi
    (cd / && exec "${as[@]}" "$programs/postgres" -D "$data" -p "${address##*:}" -c listen_addresses=127.0.0.1 -c unix_socket_directories=) \
        >> "$HOME/postgres.log" 2>&1 &
    server=$!
    for ((i = 0; i < 1200; i++)); do
        "$programs/pg_isready" -q -h 127.0.0.1 -p "${address##*:}" && return
        sleep 0.05
    done
    cat "$HOME/postgres.log"
    exit 1
}

postgres_stop() {
    kill -INT "$server"
    wait "$server" || true
    server=
}

at_end() {
    [[ -z ${server:-} ]] || kill -INT "$server" 2> /dev/null || true
}

# Ends the makegate with that configuration, one of those that keep running.
end_of() {
    local job process
    for job in $(jobs -p); do
        for process in "$job" $(ps -o pid= --ppid "$job"); do
            if tr '\0' ' ' < "/proc/$process/cmdline" 2> /dev/null | grep -q "makegate serve --config $1"; then
                kill "$process"
                while kill -0 "$process" 2> /dev/null; do sleep 0.05; done
            fi
        done
    done
}
