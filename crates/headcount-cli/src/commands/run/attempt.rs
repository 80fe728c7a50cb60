//! How an attempt at a delivery ends, by a command or by a POST.

/// How an attempt ended.
pub enum Attempt {
    /// It was taken.
    Done,
    /// It was not: why.
    Failed(String),
    /// It was ended because `headcount run` is to end at once.
    CutShort,
}
