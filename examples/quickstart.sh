#!/bin/sh
# From a checkout to a page in the browser: needs python3, pip and venv, nothing else.
usage() {
    cat <<'USAGE'
usage: sh examples/quickstart.sh [--port PORT] [--check]

Makes a Python environment in .envs/quickstart, installs fcgi_app from this checkout
into it, and serves examples/hello.py at http://127.0.0.1:PORT/ (default: 8000; 0 takes
a free one) until Ctrl-C. Change the script and reload the page. For another script:

    .envs/quickstart/bin/fcgi-app dev examples/guestbook.py

  --check   fetch the page once, print it, and stop: exit status 0 if that worked

PYTHON=/path/to/python3.12 chooses another interpreter than python3.
USAGE
}

set -eu
cd "$(dirname -- "$0")/.."

python=${PYTHON:-python3}
port=8000
check=no
script=examples/hello.py
env=.envs/quickstart

die() {
    printf 'examples/quickstart.sh: %s\n' "$*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --port)
        [ $# -ge 2 ] || die "--port needs a number"
        port=$2
        shift
        ;;
    --port=*) port=${1#--port=} ;;
    --check) check=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) die "unknown argument $1 (see --help)" ;;
    esac
    shift
done

case $port in
'' | *[!0-9]*) die "--port needs a number, not '$port'" ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$python is not Python 3.10 or newer"
"$python" -c 'import ensurepip, venv' ||
    die "$python has no venv; on Debian: apt-get install python3-venv"

# Built from a copy: setuptools would pack what an earlier build left in the checkout.
echo "Installing fcgi_app in $env ..."
[ -x "$env/bin/python" ] && "$env/bin/python" -c '' || "$python" -m venv --clear "$env"
rm -rf "$env/source"
mkdir "$env/source"
cp -R pyproject.toml README.md LICENSE fcgi_app manpages "$env/source"
"$env/bin/pip" --disable-pip-version-check install -qq "$env/source[forms]"

if [ "$check" = no ]; then
    exec "$env/bin/fcgi-app" dev --port "$port" "$script"
fi

log=$env/check.log
: >"$log"
"$env/bin/fcgi-app" dev --port "$port" "$script" >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || :; wait "$server" 2>/dev/null || :' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Ten seconds for the line with the address.
tries=100
until url=$(grep -o -m 1 'http://[^ ]*' "$log"); do
    tries=$((tries - 1))
    if [ "$tries" -eq 0 ] || ! kill -0 "$server" 2>/dev/null; then
        cat "$log" >&2
        die "fcgi-app dev did not come up"
    fi
    sleep 0.1
done
echo "GET $url"
"$env/bin/python" - "$url" <<'FETCH'
import sys
import urllib.request

# No proxy stands between this machine and itself.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(sys.argv[1], timeout=10) as page:
    print(page.read().decode())
FETCH
