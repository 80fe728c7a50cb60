rockspec_format = "3.0"
package = "headcount"
version = "0.1.0-1"
source = {
    url = "git+https://github.com/headcount-rs/headcount.git",
    tag = "v0.1.0",
}
description = {
    summary = "Knows, exactly and at once, which worker processes of a server are alive",
    detailed = [[
        resty.headcount reports every start, reload, upgrade, death and stop of an nginx or OpenResty server's workers:
        once, in order, with exact counts. resty.worker.manager is a drop-in replacement for lua-resty-worker-manager.
        For Linux and LuaJIT. Building needs Rust 1.85 or newer.
    ]],
    homepage = "https://github.com/headcount-rs/headcount",
    license = "Apache-2.0",
    labels = { "openresty", "nginx", "workers" },
}
supported_platforms = { "linux" }
dependencies = { "lua == 5.1" } -- LuaJIT
build = {
    type = "make",
    build_target = "build-library",
    build_variables = { SETUP = ":", CFLAGS = "$(CFLAGS)" }, -- a rock installs no system packages
    install_target = "install-rock",
    install_variables = { LUADIR = "$(LUADIR)", LUACDIR = "$(LIBDIR)" },
}
