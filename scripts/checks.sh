# shellcheck shell=bash
# For the test scripts: checks that count, and the line that sums them up.

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

# The Lua modules, as `require` names their files. The two that users name must be among them.
lua_modules() {
    printf '%s\n' resty/headcount.lua resty/worker/manager.lua
    (cd lua && find . -name '*.lua' ! -path ./resty/headcount.lua ! -path ./resty/worker/manager.lua -printf '%P\n')
}

# Whether a LuaJIT with no setting at all would find modules and library, if what is below this root were at /.
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

summary() { # what was tested; the exit code of the script
    printf '%s: %d passed, %d failed\n' "$1" "$passed" "$failed"
    [[ $failed -eq 0 ]]
}
