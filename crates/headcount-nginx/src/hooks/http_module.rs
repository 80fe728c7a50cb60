//! The http module: `headcount_status` and the variables.

use std::ffi::{c_char, c_void};
use std::ptr;

use headcount_report::Format;
use ngx::core::Pool;
use ngx::ffi::{
    self, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_HTTP_LOC_CONF, NGX_HTTP_LOC_CONF_OFFSET, NGX_HTTP_MODULE,
    ngx_command_t, ngx_conf_t, ngx_http_conf_ctx_t, ngx_http_core_loc_conf_t, ngx_http_module_t,
    ngx_http_request_t, ngx_int_t, ngx_module_t, ngx_uint_t,
};
use ngx::http::Request;
use ngx::ngx_string;

use crate::hooks::{status, variables};
use crate::nginx::border::entry;
use crate::nginx::log::{Level, complain, conf_error, log};
use crate::nginx::{facts, respond};
use crate::node::state::state;

static mut COMMANDS: [ngx_command_t; 2] = [
    ngx_command_t {
        name: ngx_string!("headcount_status"),
        type_: (NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS | NGX_CONF_TAKE1) as ngx_uint_t,
        set: Some(set_status),
        conf: NGX_HTTP_LOC_CONF_OFFSET,
        offset: 0,
        post: ptr::null_mut(),
    },
    ngx_command_t::empty(),
];

static mut CONTEXT: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: Some(variables::add),
    postconfiguration: None,
    create_main_conf: None,
    init_main_conf: None,
    create_srv_conf: None,
    merge_srv_conf: None,
    create_loc_conf: Some(create_loc_conf),
    merge_loc_conf: None,
};

/// What shows.
#[allow(non_upper_case_globals)]
pub static mut ngx_http_headcount_module: ngx_module_t = ngx_module_t {
    ctx: (&raw mut CONTEXT).cast(),
    commands: (&raw mut COMMANDS).cast(),
    type_: NGX_HTTP_MODULE as ngx_uint_t,
    ..ngx_module_t::default()
};

#[derive(Default)]
struct LocConf {
    is_set: bool,
    /// None: as the request wishes.
    format: Option<Format>,
}

unsafe extern "C" fn create_loc_conf(cf: *mut ngx_conf_t) -> *mut c_void {
    entry("create_loc_conf", ptr::null_mut(), || {
        // SAFETY: nginx's context has its pool.
        unsafe { Pool::from_ngx_pool((*cf).pool) }.allocate(LocConf::default()).cast()
    })
}

/// `headcount_status [json|prometheus|html];`
unsafe extern "C" fn set_status(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    entry("headcount_status directive", conf_error(), || {
        // SAFETY: nginx calls us with its own context, in a location, and with what create_loc_conf has made.
        unsafe {
            let Some(conf) = conf.cast::<LocConf>().as_mut() else { return conf_error() };
            if conf.is_set {
                return c"is duplicate: it may be given once in a location".as_ptr().cast_mut();
            }
            let arguments = (*(*cf).args).as_slice::<ffi::ngx_str_t>();
            conf.is_set = true;
            if let Some(name) = arguments.get(1).map(|argument| facts::text(argument)) {
                conf.format = Format::from_name(&name);
                if conf.format.is_none() {
                    complain(
                        cf,
                        &format!(
                            "headcount_status: unknown form \"{name}\"; allowed are json, prometheus and html"
                        ),
                    );
                    return conf_error();
                }
            }
            let context = (*cf).ctx.cast::<ngx_http_conf_ctx_t>();
            let core = *(*context).loc_conf.add(ffi::ngx_http_core_module.ctx_index);
            (*core.cast::<ngx_http_core_loc_conf_t>()).handler = Some(answer);
        }
        ptr::null_mut()
    })
}

/// The request's wishes: several lines of `Accept` are one list.
///
/// # Safety
/// The request is one that nginx has called a content handler with.
unsafe fn accept(r: *mut ngx_http_request_t) -> String {
    // SAFETY: by the caller's word.
    let request = unsafe { Request::from_ngx_http_request(r) };
    let lines =
        request.headers_in_iterator().filter(|(name, _)| name.as_bytes().eq_ignore_ascii_case(b"accept"));
    lines
        .map(|(_, value)| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect::<Vec<_>>()
        .join(",")
}

unsafe extern "C" fn answer(r: *mut ngx_http_request_t) -> ngx_int_t {
    entry("headcount_status", ffi::NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t, || {
        // SAFETY: nginx's own request, in a location that has our part of its configuration.
        unsafe {
            if (*r).method & (ffi::NGX_HTTP_GET | ffi::NGX_HTTP_HEAD) as ngx_uint_t == 0 {
                return ffi::NGX_HTTP_NOT_ALLOWED as ngx_int_t;
            }
            let discarded = ffi::ngx_http_discard_request_body(r);
            if discarded != ffi::NGX_OK as ngx_int_t {
                return discarded;
            }
            let conf = *(*r).loc_conf.add(ngx_http_headcount_module.ctx_index);
            let fixed = conf.cast::<LocConf>().as_ref().and_then(|conf| conf.format);
            let format = Format::negotiate(fixed, &accept(r));
            let node = state().tracked.as_ref().map(|tracked| tracked.generation.node().clone());
            let Some(node) = node else { return ffi::NGX_HTTP_SERVICE_UNAVAILABLE as ngx_int_t };
            match status::body(&node, format, status::events_of((*r).args.as_bytes())) {
                Ok(body) => respond::document(r, format, &body),
                Err(why) => {
                    log(Level::Error, &format!("headcount_status {}: {why}", format.name()));
                    ffi::NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t
                }
            }
        }
    })
}
