//! A node as one self-contained page.

use crate::status::StatusDocument;

/// What an answer in this format says that it is.
pub const HTML_CONTENT_TYPE: &str = "text/html; charset=utf-8";

const PAGE: &str = include_str!("page.html");

/// The page about these nodes. It fetches its own address as JSON to go on, and nothing else from anywhere.
///
/// # Errors
/// None is known: the document has no maps whose keys could not be written.
pub fn page(document: &StatusDocument) -> serde_json::Result<String> {
    // Within <script>, only this ends it.
    let data = serde_json::to_string(document)?.replace('<', "\\u003c");
    Ok(PAGE.replacen("@DATA@", &data, 1))
}
