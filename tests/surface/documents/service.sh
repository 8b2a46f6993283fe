# A makegate that runs as the Debian package has it, beside a simulated Make; `systemctl` and `journalctl` speak to it.
bin=$HOME/.bin
mkdir -p /etc/makegate /var/lib/makegate /var/backups
export credentials=$HOME/credentials
export service_log=$HOME/service.log

cat > "$bin/sudo" <<'END'
#!/bin/sh
exec "$@"
END
cat > "$bin/journalctl" <<'END'
#!/bin/sh
cat "$service_log"
END
cat > "$bin/systemctl" <<'END'
#!/usr/bin/env bash
set -euo pipefail
[[ $2 == makegate ]]
pid=$(cat "$HOME/pid" 2> /dev/null || true)
pass_credentials() {
    rm -rf "$credentials"
    mkdir "$credentials"
    cp /etc/makegate/make /etc/makegate/operator "$credentials"
}
start() {
    pass_credentials
    CREDENTIALS_DIRECTORY=$credentials makegate serve --config /etc/makegate/makegate.toml 2>> "$service_log" &
    echo $! > "$HOME/pid"
    for ((i = 0; i < 1200; i++)); do
        curl -sf -o /dev/null http://127.0.0.1:8081/livez && return
        kill -0 $! || { cat "$service_log"; exit 1; }
        sleep 0.05
    done
    exit 1
}
stop() {
    kill "$pid"
    while kill -0 "$pid" 2> /dev/null; do sleep 0.05; done
    rm "$HOME/pid"
}
reload() {
    pass_credentials
    local before=$(grep -c 'the configuration was reloaded' "$service_log")
    kill -HUP "$pid"
    for ((i = 0; i < 200; i++)); do
        (($(grep -c 'the configuration was reloaded' "$service_log") > before)) && return
        sleep 0.05
    done
    cat "$service_log"
    exit 1
}
case $1 in
start) start ;;
stop) stop ;;
restart) stop; start ;;
reload) reload ;;
status) kill -0 "$pid" ;;
*) exit 1 ;;
esac
END
chmod +x "$bin"/sudo "$bin"/journalctl "$bin"/systemctl

makegate sandbox --listen 127.0.0.1:8082 --token make-token > "$HOME/sandbox.log" 2>&1 &
cd /etc/makegate
printf make-token > make
printf operator-key-of-the-test > operator
keys=$HOME/keys
mkdir "$keys"
makegate key new --caller dashboard -o json 2> /dev/null > "$keys/dashboard.json"
makegate key new --caller provisioning -o json 2> /dev/null > "$keys/provisioning.json"
hash_of() { sed -E 's/.*"hash":"([^"]*)".*/\1/' "$keys/$1.json"; }
key_of() { sed -E 's/.*"key":"([^"]*)".*/\1/' "$keys/$1.json"; }
cp "$repository/deploy/makegate.toml" .
sed -i -e "s#sha256:0*\"#$(hash_of dashboard)\"#" -e 's#https://eu1.make.com#http://127.0.0.1:8082#' \
    -e 's#^dir = .*#dir = "/var/lib/makegate/audit"#' -e 's#^key_file = .*#listen = "127.0.0.1:8081"\n&#' makegate.toml
cat >> makegate.toml <<END
organizations = [11, 12]

[[caller]]
name = "provisioning"
keys = ["$(hash_of provisioning)"]
grants = ["*"]

[metrics]
listen = "127.0.0.1:9464"
END
printf '\n[gateway]\nlisten = "127.0.0.1:8080"\n' >> makegate.toml
if [[ $kind == https ]]; then
    makegate cert new --dir tls > /dev/null
    echo 'tls = { cert = "tls/cert.pem", key = "tls/key.pem" }' >> makegate.toml
fi
until_ready http://127.0.0.1:8082/
systemctl start makegate

# Writes in doubt, for the documents to settle.
curl -sS -o /dev/null -d '{"method": "POST", "path": "/api/v2/organizations/11/single-payment-create", "times": 9, "kind": {"reset": {"effect": true}}}' \
    http://127.0.0.1:8082/sandbox/faults
scheme=http
[[ $kind == https ]] && scheme=https
for payment in 1 2 3 4; do
    curl -skS -o /dev/null -H "Authorization: Token $(key_of provisioning)" -H "X-Request-Id: payment-$payment" \
        -H 'Content-Type: application/json' -d "{\"priceId\": $payment}" "$scheme://127.0.0.1:8080/api/v2/organizations/11/single-payment-create"
done
export KEY=$(key_of dashboard)

