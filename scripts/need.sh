# Sourced by the other scripts: asks for a Debian package when something is missing, or says how to get it.

say() { printf '%s\n' "$*" >&2; }

# need COMMAND PACKAGE...: makes sure that COMMAND can be run.
need() {
    command -v "$1" >/dev/null 2>&1 && return 0
    need_command=$1
    shift
    add_packages "$need_command" "$@"
    command -v "$need_command" >/dev/null 2>&1 || { say "error: $need_command is still missing"; exit 1; }
}

# add_packages WHAT PACKAGE...: installs the packages that bring WHAT, when this is root on a Debian; else says what to do.
add_packages() {
    for_what=$1
    shift
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        say "error: $for_what is missing. On Debian or Ubuntu: sudo apt-get install $*"
        exit 1
    fi
    say "installing $* (for $for_what)"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1 && return 0
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >/dev/null || {
        say "error: apt-get could not install $*"
        exit 1
    }
}
