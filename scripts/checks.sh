# shellcheck shell=bash
# For the test scripts: checks that are counted, and the summary line.

passed=0
failed=0

pass() {
    passed=$((passed + 1))
    printf 'ok    %s\n' "$1"
}

fail() {
    failed=$((failed + 1))
    printf 'FAIL  %s\n' "$1" >&2
}

check() { # name command...
    local name=$1
    shift
    if "$@"; then pass "$name"; else fail "$name"; fi
}

same() { # name expected found
    if [[ $2 == "$3" ]]; then
        pass "$1"
    else
        fail "$1"
        diff <(printf '%s\n' "$2") <(printf '%s\n' "$3") >&2 || true
    fi
}

# The Lua modules, by the file names that `require` uses. The two that users require must be among them.
lua_modules() {
    printf '%s\n' resty/headcount.lua resty/worker/manager.lua
    (cd lua && find . -name '*.lua' ! -path ./resty/headcount.lua ! -path ./resty/worker/manager.lua -printf '%P\n')
}

# The program's manual: a page for the program, and one for each command.
manual_pages() {
    printf '%s.1\n' headcount headcount-{agent,cluster{,-status,-events,-wait,-reload,-leader},completions,doctor,events,lock,reload,run,status,top,wait}
}

# Whether bash completes `headcount stat` after reading this file.
bash_completes() {
    bash -c 'source "$1" && COMP_WORDS=(headcount stat) COMP_CWORD=1 && _headcount headcount stat headcount && [[ ${COMPREPLY[*]} == status ]]' - "$1"
}

# Whether the pages in this folder list exit codes, and the formatter has no complaint.
pages_are_sound() {
    local page
    for page in "$1"/*; do
        local text
        text=$(case $page in *.gz) gzip -dc "$page" ;; *) cat "$page" ;; esac)
        grep -q '^\.SH "\{0,1\}EXIT STATUS' <<<"$text" || { printf '%s has no exit codes\n' "$page" >&2 && return 1; }
        # groff is not on every machine.
        ! command -v groff >/dev/null || [[ -z $(groff -Kutf8 -man -ww -z -Tutf8 <<<"$text" 2>&1) ]] || return 1
    done
}

# Whether a LuaJIT without settings would find modules and library if this root were /.
luajit_finds() {
    env -u LUA_PATH -u LUA_CPATH ROOT="$1" luajit - <<'EOF'
local root = os.getenv("ROOT")
local function below(path) return (path:gsub("/[^;]+", root .. "%0")) end
assert(package.searchpath("resty.headcount", below(package.path)))
assert(package.searchpath("resty.worker.manager", below(package.path)))
local ffi = require "ffi"
ffi.cdef "uint32_t headcount_abi_version(void);"
assert(ffi.load(assert(package.searchpath("libheadcount", below(package.cpath)))).headcount_abi_version() > 0)
EOF
}

summary() { # the name of the test; returns the script's exit code
    printf '%s: %d passed, %d failed\n' "$1" "$passed" "$failed"
    [[ $failed -eq 0 ]]
}
