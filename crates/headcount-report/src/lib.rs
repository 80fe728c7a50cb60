//! What headcount knows, as sentences for people and as documents for programs.
//!
//! The program `headcount` and the nginx module say the same thing in the same words: this is where they have them
//! from. Nothing here looks at a registry; a [`headcount::Snapshot`] and [`headcount::Event`]s go in.

#![forbid(unsafe_code)]

mod event;
mod format;
mod history;
mod life;
mod page;
mod prometheus;
mod sentence;
mod serving;
mod status;
mod words;

pub use event::EventDocument;
pub use format::Format;
pub use history::{CrashLoop, Death, History};
pub use life::{Claim, Life};
pub use page::{HTML_CONTENT_TYPE, page};
pub use prometheus::{PROMETHEUS_CONTENT_TYPE, prometheus};
pub use sentence::sentence;
pub use serving::Newest;
pub use status::{
    GenerationDocument, HolderDocument, NodeDocument, ProcessDocument, RecentDocument, SCHEMA,
    SettingsDocument, StatusDocument,
};
pub use words::{age, duration, plural, signal_name, timestamp};
