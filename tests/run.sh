#!/bin/sh
# All tests, from a clean clone on Debian 12 with python3, pip and venv.
usage() {
    cat <<'USAGE'
usage: sh tests/run.sh [--all-servers] [--coverage] [PYTEST ARGUMENTS]
       sh tests/run.sh --sanitize [PYTEST ARGUMENTS]

Without pytest arguments: installs the web servers that are missing, builds the wheels
with and without the native backend, looks at the source (ruff, mypy, import-linter,
mandoc, the compiler's warnings), tries the quick start, and runs the test suite against
the installed wheel. On python3: all of it with the native backend, what needs no real
web server with the pure one, and of that what is not marked slow with AddressSanitizer
and UBSan in the native one. On every other Python 3.10 to 3.13 that is found: what needs
no real web server and is not marked slow, with the native backend, and some of that with
the pure one. All these run side by side, and each shows what it has to say when it is
done.

With pytest arguments: only those tests, only on python3, such as
    sh tests/run.sh tests/test_params.py -k truncated

  --all-servers   every Python, and python3 with the pure backend as well, runs all
                  tests, those with real web servers too
  --sanitize      only the tests with the sanitizers, the slow ones as well: a quarter of
                  an hour
  --coverage      measures branch coverage on python3 and prints what is missing
  --backend=pure  with pytest arguments: the wheel without the native backend

  PYTHON=/path/to/python3.12   the interpreter that stands for python3
  PYTHONS="3.10 3.13"          the versions to look for (empty: python3 alone)

Environments, wheel and logs are kept in .envs; exit status 0 means that all passed.
USAGE
}

set -u
cd "$(dirname -- "$0")/.." || exit 1

envs=.envs
wheels=$envs/wheel # native and pure
backend=native
python=${PYTHON:-python3}
versions=${PYTHONS-3.10 3.11 3.12 3.13}
all_servers=no
coverage=no
sanitize=no
job=
most_unsteady=5 # tests of one Python that may fail once; more is a defect
failed=
summary=

# Web servers and their tools live there; an ordinary user's PATH lacks them.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
PIP_DISABLE_PIP_VERSION_CHECK=1
PIP_NO_INPUT=1
PIP_ROOT_USER_ACTION=ignore
export PATH PIP_DISABLE_PIP_VERSION_CHECK PIP_NO_INPUT PIP_ROOT_USER_ACTION

die() {
    printf 'tests/run.sh: %s\n' "$*" >&2
    exit 1
}

# --- Debian packages -----------------------------------------------------------------

# What is asked for is the file, so that a server from elsewhere will do.
needed_packages() {
    cat <<'LIST'
/usr/sbin/apache2 apache2
/usr/bin/htpasswd apache2-utils
/usr/lib/apache2/modules/mod_fcgid.so libapache2-mod-fcgid
/usr/sbin/nginx nginx-light
/usr/sbin/lighttpd lighttpd
/usr/sbin/haproxy haproxy
/usr/bin/cgi-fcgi libfcgi-bin
/usr/include/fcgi_stdio.h libfcgi-dev
/usr/bin/spawn-fcgi spawn-fcgi
/usr/bin/mandoc mandoc
/usr/bin/curl curl
/usr/bin/openssl openssl
/usr/bin/gcc gcc
/usr/include/stdio.h libc6-dev
/usr/bin/ps procps
/usr/bin/systemd-analyze systemd
LIST
    # Debian's python3 without python3-venv has a venv module that cannot work.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "/nonexistent python3-venv"
    fi
    echo "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h python3-dev"
}

missing_packages() {
    needed_packages | while read -r file package; do
        [ -e "$file" ] || printf '%s ' "$package"
    done
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

# A package script asks this file whether it may start its service: no server of the
# package is to take port 80 here. A file that the machine already has is left alone.
policy=/usr/sbin/policy-rc.d
policy_is_ours=no

forbid_services() {
    [ ! -e "$policy" ] || return 0
    policy_is_ours=yes
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null &&
        as_root chmod 755 "$policy"
}

restore_services() {
    [ "$policy_is_ours" = no ] || as_root rm -f "$policy"
    policy_is_ours=no
}

install_packages() {
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null ||
        die "this is no Debian system; install what these packages hold: $missing"
    as_root true 2>/dev/null || die "packages are missing; as root, run:
    apt-get install --no-install-recommends $missing"
    echo "installing $missing"
    forbid_services || die "cannot write $policy"
    # shellcheck disable=SC2086  # one word for each package
    apt_get update && apt_get install --no-install-recommends $missing >"$envs/apt.log" 2>&1 || {
        tail -n 20 "$envs/apt.log" >&2
        die "apt-get could not install $missing"
    }
    restore_services
    missing=$(missing_packages)
    [ -z "$missing" ] || die "still missing after their installation: $missing"
}

# --- Python environments -------------------------------------------------------------

version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# The command python3.X may be a shim that only says that it has none.
find_python() {
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        [ "$(version_of "$candidate")" = "$1" ] || continue
        "$candidate" -c 'import ensurepip, venv' 2>/dev/null || continue
        echo "$candidate"
        return 0
    done
    return 1
}

# make_env DIRECTORY PYTHON: an environment with what builds, kept while nothing changes.
make_env() {
    key="$("$2" -c 'import sys; print(sys.version, sys.base_prefix)') $(cksum <pyproject.toml)"
    if [ -x "$1/bin/python" ] && [ "$(cat "$1/made-for" 2>/dev/null)" = "$key" ]; then
        return 0
    fi
    rm -rf "$1"
    "$2" -m venv "$1" && "$1/bin/pip" install -qq "setuptools>=77.0.3" "cffi>=1.17" ||
        return 1
    echo "$key" >"$1/made-for"
}

# Built from a copy: setuptools would pack what an earlier build left in the checkout.
build_wheels() {
    rm -rf "$envs/source" "$wheels"
    mkdir -p "$envs/source" "$wheels"
    cp -R pyproject.toml README.md LICENSE fcgi_app manpages "$envs/source" || return 1
    for kind in native pure; do
        FCGI_APP_BUILD=$kind "$1/bin/pip" wheel -qq --no-deps --no-build-isolation \
            -w "$wheels/$kind" "$envs/source" || return 1
    done
    ls "$wheels"/native/*-abi3-*.whl "$wheels"/pure/*-none-any.whl
}

# install_wheel DIRECTORY EXTRA BACKEND: the extra's packages once, the wheel every time.
install_wheel() {
    set -- "$1" "$2" "$wheels/$3"/*.whl
    if [ ! -e "$1/has-$2" ]; then
        "$1/bin/pip" install -qq "$3[$2]" || return 1
        touch "$1/has-$2"
    fi
    "$1/bin/pip" install -qq --no-deps --force-reinstall "$3"
}

# --- Steps ---------------------------------------------------------------------------

# step NAME COMMAND...: runs on after a failure, so that one run shows all of them.
step() {
    name=$1
    shift
    printf '\n== %s\n' "$name"
    began=$(date +%s)
    "$@"
    status=$?
    result=passed
    if [ $status -ne 0 ]; then
        result="FAILED, status $status"
        failed="$failed, $name"
    fi
    summary="$summary
  $name: ${closing:-$result} ($(($(date +%s) - began)) s)"
    closing=
    return $status
}

# The step or the end of everything.
must() {
    step "$@" || {
        report
        exit 1
    }
}

# pytest_in DIRECTORY PYTEST-ARGUMENTS...: -I keeps the checkout off sys.path, so that the
# wheel is what is tested. Without job control a pipe hides a status, so a file has it.
pytest_in() {
    place=$1
    shift
    runner="-Im pytest"
    [ "$coverage" = no ] || runner="-Im coverage run -m pytest"
    [ ! -t 1 ] || set -- --color=yes "$@"
    # shellcheck disable=SC2086  # options, one word each
    { "$place/bin/python" $runner -o cache_dir="$PWD/$place/cache" "$@" 2>&1
        echo $? >"$place/status"; } | tee "$place/pytest.log"
    closing=$(tail -n 1 "$place/pytest.log")
    return "$(cat "$place/status")"
}

# suite DIRECTORY PYTEST-ARGUMENTS...: what fails is run once more by itself. A test that
# passes then depends on how busy the machine is: the run passes, and the summary names it.
suite() {
    rm -rf "$1/cache"
    pytest_in "$@" && return 0
    unsteady=$(sed -n 's/^\(FAILED\|ERROR\) \([^ ]*\).*/  unsteady: \2/p' "$1/pytest.log")
    [ "$(cat "$1/status")" -eq 1 ] && [ "$(echo "$unsteady" | wc -l)" -le "$most_unsteady" ] ||
        return 1
    first=$closing
    printf '\n== once more, what has failed\n'
    pytest_in "$@" --last-failed --last-failed-no-failures none || return 1
    closing="$first; once more: $closing
$unsteady"
}

# What a user's compiler warns of stops no build; here it does.
lint_c() {
    for source in fcgi_app/_native/*.c; do
        gcc -std=gnu11 -O2 -Wall -Wextra -Wshadow -Wconversion -Werror \
            -c -o "$envs/lint.o" "$source" || return 1
    done
}

# The backend with AddressSanitizer and UBSan, from the checkout; see tests/sanitize.py.
sanitized() {
    "$main/bin/python" -m tests.sanitize "$@"
    status=$?
    closing=$(sed -n '/ passed.* in .*s/p' "$envs/sanitizers.log" 2>/dev/null | tail -n 1)
    [ $status -eq 0 ] || closing=
    return $status
}

lint_pages() {
    mandoc -T lint -W warning manpages/*.[0-9]
}

# What the other Pythons run with the pure backend: what differs from Python to Python.
pure_part="tests/test_codec.py tests/test_connection.py tests/test_swap.py
    tests/test_environ.py tests/test_fcgi_stdio.py tests/test_request.py
    tests/test_threads.py tests/test_package.py"

# tests_on DIRECTORY BACKEND TITLE PYTEST-ARGUMENTS...: the suite on the wheel that is
# installed, which must be the one with that backend.
tests_on() {
    place=$1 kind=$2 title=$3
    shift 3
    step "tests on Python $title, $kind" suite "$place" --backend="$kind" "$@"
}

# alone JOB: one of the jobs below, in a process of its own beside others.
#   VERSION        what needs no real web server, and is not slow, and some of it pure
#   VERSION-all    all of it, in the environment that is there already
#   VERSION-pure   what needs no real web server, with the pure backend
#   sanitizers     the backend with AddressSanitizer and UBSan
alone() {
    exec 3>&1 >"$envs/$1.log" 2>&1
    case $1 in
    *-all) ;;
    *) coverage=no ;;
    esac
    case $1 in
    sanitizers) step "sanitizers" sanitized ;;
    *-all) tests_on "$main" native "$main_version" -q ;;
    *-pure) some_tests "$1" pure "$python" "not e2e" ;;
    *)
        some_tests "$1" native "$(find_python "$1")" "not e2e and not slow" &&
            step "the pure wheel for Python $1" install_wheel "$envs/$1" test pure &&
            # shellcheck disable=SC2086  # one word for each file
            tests_on "$envs/$1" pure "$1" -q -m "not e2e and not slow" $pure_part
        ;;
    esac
    cat "$envs/$1.log" >&3
    echo "$failed" >"$envs/$1.failed"
    echo "$summary" >"$envs/$1.summary"
}

# some_tests ENVIRONMENT BACKEND PYTHON MARKERS: an environment with one of the wheels,
# and the tests in it; with --all-servers all of them.
some_tests() {
    some=$4
    [ "$all_servers" = no ] || some=
    step "environment $1" make_env "$envs/$1" "$3" &&
        step "installation in $1" install_wheel "$envs/$1" test "$2" &&
        tests_on "$envs/$1" "$2" "${1%-pure}" -q -m "$some"
}

# side_by_side JOB...: for they wait more than they compute. Not by "&": what a shell
# starts in this way ignores Ctrl-C.
side_by_side() {
    printf '\n== side by side: %s\n' "$*"
    for job; do rm -f "$envs/$job.summary"; done
    options=
    [ "$all_servers" = no ] || options=--all-servers
    [ "$coverage" = no ] || options="$options --coverage"
    # shellcheck disable=SC2086  # none or some
    printf '%s\n' "$@" | xargs -n 1 -P 4 sh tests/run.sh $options --alone
    for job; do
        if [ -e "$envs/$job.summary" ]; then
            summary="$summary$(cat "$envs/$job.summary")"
            failed="$failed$(cat "$envs/$job.failed")"
        else
            summary="$summary
  $job: FAILED, ended early (see $envs/$job.log)"
            failed="$failed, $job"
        fi
    done
}

report_coverage() {
    # A process that was killed leaves an empty file.
    find . -maxdepth 1 -name '.coverage.*' -size 0 -exec rm -f {} +
    "$main/bin/python" -Im coverage combine -q && "$main/bin/python" -Im coverage report
}

report() {
    printf '\n== summary%s\n' "$summary"
    [ -z "$failed" ] || printf 'FAILED: %s\n' "${failed#, }"
}

# --- The run -------------------------------------------------------------------------

while [ $# -gt 0 ]; do
    case $1 in
    --all-servers) all_servers=yes ;;
    --coverage) coverage=yes ;;
    --sanitize) sanitize=yes ;;
    --backend=native | --backend=pure) backend=${1#*=} ;;
    --alone) # see side_by_side
        job=$2
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) break ;;
    esac
    shift
done

trap restore_services EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$envs"
main_version=$(version_of "$python") || die "cannot run $python"
case $main_version in
3.1[0-9]) ;;
*) die "$python is Python $main_version, and 3.10 is the oldest that will do" ;;
esac
main=$envs/$main_version

if [ -n "$job" ]; then
    alone "$job"
    exit
fi

must "Debian packages" install_packages
must "environment for Python $main_version" make_env "$main" "$python"
must "wheels" build_wheels "$main"
must "installation for Python $main_version" install_wheel "$main" dev "$backend"

if [ "$sanitize" = yes ]; then
    [ $# -gt 0 ] || set -- -q -m "not e2e" tests
    sanitized "$@"
    exit
fi
[ "$coverage" = no ] || "$main/bin/python" -Im coverage erase
if [ $# -gt 0 ]; then
    suite "$main" --backend="$backend" "$@"
    status=$?
    [ "$coverage" = no ] || report_coverage
    exit $status
fi

step "ruff check" "$main/bin/ruff" check --output-format concise .
step "ruff format" "$main/bin/ruff" format --check .
step "mypy" "$main/bin/mypy"
step "import contracts" "$main/bin/lint-imports" --no-cache --no-logo
step "man pages" lint_pages
step "C sources" lint_c
step "quick start" env PYTHON="$python" sh examples/quickstart.sh --check --port 0
# First, for they take longest.
set -- "$main_version-all" "$main_version-pure" sanitizers
for version in $versions; do
    [ "$version" != "$main_version" ] || continue
    if find_python "$version" >/dev/null; then
        set -- "$@" "$version"
    else
        summary="$summary
  tests on Python $version: not run, there is no python$version here"
    fi
done
side_by_side "$@"
[ "$coverage" = no ] || step "coverage" report_coverage

report
[ -z "$failed" ]
