//! Where nginx calls us: two modules, their directives and what those show.

pub(crate) mod core_module;
mod directive;
pub(crate) mod http_module;
mod status;
mod variables;
