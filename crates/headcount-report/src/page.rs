//! A node as one self-contained page.

use crate::status::StatusDocument;

/// The content type of an answer in this format.
pub const HTML_CONTENT_TYPE: &str = "text/html; charset=utf-8";

const PAGE: &str = include_str!("page.html");

/// The page about these nodes. It refreshes itself by fetching its own address as JSON, and fetches nothing else.
///
/// # Errors
/// None is known: the document has no maps whose keys could not be written.
pub fn page(document: &StatusDocument) -> serde_json::Result<String> {
    // Only this ends a <script>.
    let data = serde_json::to_string(document)?.replace('<', "\\u003c");
    Ok(PAGE.replacen("@DATA@", &data, 1))
}
