# What the scripts here share; they source it. Sets `here`, `root` and `binary` (from $1, else built).
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

for tool in chromium node npm; do
    command -v "$tool" > /dev/null || { printf '%s is missing: apt-get install %s\n' "$tool" "$tool" >&2; exit 2; }
done
if ! cmp -s "$here/package-lock.json" "$here/node_modules/.installed"; then
    (cd "$here" && npm ci --silent && cp package-lock.json node_modules/.installed)
fi

binary=${1:-$root/target/debug/makegate}
if [[ -z ${1:-} ]]; then
    cargo build --locked --manifest-path "$root/Cargo.toml"
fi
binary=$(realpath "$binary")
