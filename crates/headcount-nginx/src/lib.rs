//! headcount as a dynamic module of nginx: docs/nginx.md is its reference.
//!
//! Two nginx modules in one file: the core module tracks the processes, also of a server without an `http` block; the
//! http module shows what is known, by `headcount_status` and variables.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

// Each floor uses only those above it in this list.
mod nginx;

mod node;

mod hooks;

use std::ffi::c_char;
use std::ptr;

use ngx::ffi::ngx_module_t;

/// What nginx looks up in a file that `load_module` names.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mut ngx_modules: [*const ngx_module_t; 3] = [
    &raw const hooks::core_module::ngx_headcount_module,
    &raw const hooks::http_module::ngx_http_headcount_module,
    ptr::null(),
];

/// The names of [`ngx_modules`].
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mut ngx_module_names: [*const c_char; 3] =
    [c"ngx_headcount_module".as_ptr(), c"ngx_http_headcount_module".as_ptr(), ptr::null()];

/// Before which other modules this one comes, whichever is loaded first: those in which users' code runs as a worker starts.
/// A worker that dies in it must have joined before.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static mut ngx_module_order: [*const c_char; 9] = [
    c"ngx_headcount_module".as_ptr(),
    c"ngx_http_lua_module".as_ptr(),
    c"ngx_stream_lua_module".as_ptr(),
    c"ngx_http_js_module".as_ptr(),
    c"ngx_stream_js_module".as_ptr(),
    c"ngx_http_perl_module".as_ptr(),
    c"ngx_http_passenger_module".as_ptr(),
    c"ngx_wasmx_module".as_ptr(),
    ptr::null(),
];
