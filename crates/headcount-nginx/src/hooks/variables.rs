//! `$headcount_…`: what an access log or a header may show.

use ngx::ffi::{
    self, NGX_ERROR, NGX_OK, ngx_conf_t, ngx_http_request_t, ngx_int_t, ngx_str_t, ngx_variable_value_t,
};
use ngx::ngx_string;

use crate::nginx::border::entry;
use crate::nginx::facts;
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
        NGX_OK as ngx_int_t
    })
}

unsafe extern "C" fn get(r: *mut ngx_http_request_t, v: *mut ngx_variable_value_t, data: usize) -> ngx_int_t {
    entry("variable", NGX_ERROR as ngx_int_t, || {
        let value = VARIABLES.get(data).and_then(|(_, read)| read(&state()));
        // SAFETY: nginx's own request and the place for our answer, which lies in the request's pool.
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
    })
}
