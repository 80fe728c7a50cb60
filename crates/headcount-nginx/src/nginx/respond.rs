//! Sending a document.

use headcount_report::Format;
use ngx::ffi::{self, ngx_http_request_t, ngx_int_t, ngx_str_t};

const ERROR: ngx_int_t = ffi::NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;

/// Sends a document in this form.
///
/// # Safety
/// The request is one that nginx has called a content handler with.
pub(crate) unsafe fn document(r: *mut ngx_http_request_t, format: Format, body: &str) -> ngx_int_t {
    // SAFETY: nginx's own functions on nginx's own request; what they keep lies in the request's pool, or for ever.
    unsafe {
        let out = &mut (*r).headers_out;
        let content_type = format.content_type();
        out.status = ffi::NGX_HTTP_OK as ffi::ngx_uint_t;
        out.content_length_n = body.len() as ffi::off_t;
        out.content_type = forever(content_type);
        out.content_type_len = content_type.len();
        out.content_type_lowcase = std::ptr::null_mut();
        for (name, value) in format.headers() {
            let header = ffi::ngx_list_push(&raw mut out.headers).cast::<ffi::ngx_table_elt_t>();
            let Some(header) = header.as_mut() else { return ERROR };
            *header = std::mem::zeroed();
            header.hash = 1;
            header.key = forever(name);
            header.value = forever(value);
        }

        let sent = ffi::ngx_http_send_header(r);
        if sent == ffi::NGX_ERROR as ngx_int_t || sent > ffi::NGX_OK as ngx_int_t || (*r).header_only() != 0 {
            return sent;
        }
        let Some(buffer) = ffi::ngx_create_temp_buf((*r).pool, body.len().max(1)).as_mut() else {
            return ERROR;
        };
        std::ptr::copy_nonoverlapping(body.as_ptr(), buffer.last, body.len());
        buffer.last = buffer.last.add(body.len());
        buffer.set_last_buf(u32::from(r == (*r).main));
        buffer.set_last_in_chain(1);
        let mut chain = ffi::ngx_chain_t { buf: buffer, next: std::ptr::null_mut() };
        ffi::ngx_http_output_filter(r, &raw mut chain)
    }
}

fn forever(text: &'static str) -> ngx_str_t {
    ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() }
}
