//! `$headcount_…`: what an access log or a header may show.

use headcount_core::SingletonKind;
use ngx::ffi::{
    self, NGX_ERROR, NGX_OK, ngx_conf_t, ngx_http_request_t, ngx_int_t, ngx_str_t, ngx_variable_value_t,
};
use ngx::ngx_string;

use crate::nginx::border::entry;
use crate::nginx::facts;
use crate::node::member;
use crate::node::state::{State, state};

type Read = fn(&State) -> Option<String>;

static VARIABLES: [(fn() -> ngx_str_t, Read); 5] = [
    (
        || ngx_string!("headcount_node"),
        |state| state.tracked.as_ref().map(|t| t.generation.node().name().to_owned()),
    ),
    (
        || ngx_string!("headcount_generation"),
        |state| state.tracked.as_ref().map(|t| t.generation.id().to_string()),
    ),
    (
        || ngx_string!("headcount_worker"),
        |state| state.tracked.as_ref().and_then(|_| facts::worker_number()).map(|n| n.to_string()),
    ),
    (
        || ngx_string!("headcount_state"),
        |state| {
            state.tracked.as_ref()?;
            Some(if facts::is_exiting() { "draining" } else { "serving" }.to_owned())
        },
    ),
    (
        || ngx_string!("headcount_workers"),
        |state| state.tracked.as_ref().map(|t| t.generation.node().snapshot().total.to_string()),
    ),
];

pub(crate) unsafe extern "C" fn add(cf: *mut ngx_conf_t) -> ngx_int_t {
    entry("variables", NGX_ERROR as ngx_int_t, || {
        for (i, (name, _)) in VARIABLES.iter().enumerate() {
            // SAFETY: nginx's own function and context; it copies the name.
            unsafe {
                let mut name = name();
                let flags = ffi::NGX_HTTP_VAR_NOCACHEABLE as ffi::ngx_uint_t;
                let Some(variable) = ffi::ngx_http_add_variable(cf, &raw mut name, flags).as_mut() else {
                    return NGX_ERROR as ngx_int_t;
                };
                variable.get_handler = Some(get);
                variable.data = i;
            }
        }
        // SAFETY: as above.
        unsafe {
            let mut name = ngx_string!("headcount_leads_");
            let flags = (ffi::NGX_HTTP_VAR_NOCACHEABLE | ffi::NGX_HTTP_VAR_PREFIX) as ffi::ngx_uint_t;
            let Some(variable) = ffi::ngx_http_add_variable(cf, &raw mut name, flags).as_mut() else {
                return NGX_ERROR as ngx_int_t;
            };
            variable.get_handler = Some(get_leads);
        }
        NGX_OK as ngx_int_t
    })
}

const LEADS: &str = "headcount_leads_";

/// The roles after which the configuration asks by `$headcount_leads_ROLE`.
///
/// # Safety
/// The configuration has been read.
pub(crate) unsafe fn roles_asked_for(cycle: *mut ffi::ngx_cycle_t) -> Vec<String> {
    // SAFETY: by the caller's word: nginx's http module has its part there if there is an http block, and in it the list of
    // all variables that are used.
    unsafe {
        let http = *(*cycle).conf_ctx.add(ffi::ngx_http_module.index) as *const ffi::ngx_http_conf_ctx_t;
        let Some(http) = http.as_ref() else { return Vec::new() };
        let core = *http.main_conf.add(ffi::ngx_http_core_module.ctx_index);
        let Some(core) = core.cast::<ffi::ngx_http_core_main_conf_t>().as_ref() else { return Vec::new() };
        let used = core.variables.as_slice::<ffi::ngx_http_variable_t>();
        let names = used.iter().map(|variable| facts::text(&variable.name));
        names.filter_map(|name| name.strip_prefix(LEADS).map(str::to_owned)).collect()
    }
}

/// `data` is the variable's whole name.
unsafe extern "C" fn get_leads(
    r: *mut ngx_http_request_t,
    v: *mut ngx_variable_value_t,
    data: usize,
) -> ngx_int_t {
    entry("variable", NGX_ERROR as ngx_int_t, || {
        // SAFETY: nginx gives a variable with a prefix its own name, which is part of the configuration.
        let name = unsafe { (data as *const ngx_str_t).as_ref().map(|name| facts::text(name)) };
        let role = name.as_deref().and_then(|name| name.strip_prefix(LEADS));
        let value = role.and_then(leads).map(|leads| u8::from(leads).to_string());
        // SAFETY: nginx's own request, and the place for our answer.
        unsafe { answer(r, v, value) }
    })
}

/// Whether this worker leads in a role; `None` if headcount is off.
fn leads(role: &str) -> Option<bool> {
    let tracked = state().tracked.clone()?;
    if !tracked.is_led_by_lua {
        return Some(member::leads(role).unwrap_or(false));
    }
    // Lua stands for its roles by itself.
    let own = std::process::id();
    let all = tracked.generation.node().snapshot().singletons;
    Some(all.iter().any(|x| x.kind == SingletonKind::Role && x.name == role && x.holder == Some(own)))
}

unsafe extern "C" fn get(r: *mut ngx_http_request_t, v: *mut ngx_variable_value_t, data: usize) -> ngx_int_t {
    entry("variable", NGX_ERROR as ngx_int_t, || {
        let value = VARIABLES.get(data).and_then(|(_, read)| read(&state()));
        // SAFETY: nginx's own request, and the place for our answer.
        unsafe { answer(r, v, value) }
    })
}

/// Answers with this value, or that there is none.
///
/// # Safety
/// nginx's own request, and the place for our answer, which lies in the request's pool.
unsafe fn answer(
    r: *mut ngx_http_request_t,
    v: *mut ngx_variable_value_t,
    value: Option<String>,
) -> ngx_int_t {
    // SAFETY: by the caller's word.
    unsafe {
        let v = &mut *v;
        let Some(value) = value else {
            v.set_not_found(1);
            return NGX_OK as ngx_int_t;
        };
        let copy = ffi::ngx_pnalloc((*r).pool, value.len()).cast::<u8>();
        if copy.is_null() {
            return NGX_ERROR as ngx_int_t;
        }
        std::ptr::copy_nonoverlapping(value.as_ptr(), copy, value.len());
        v.data = copy;
        v.set_len(value.len() as u32);
        v.set_valid(1);
        v.set_no_cacheable(1);
        v.set_not_found(0);
    }
    NGX_OK as ngx_int_t
}
