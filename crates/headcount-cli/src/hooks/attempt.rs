//! How an attempt at a delivery ends, by a command or by a POST.

/// How an attempt ended.
pub enum Attempt {
    /// It succeeded.
    Done,
    /// It failed: why.
    Failed(String),
    /// It was cut short because `headcount run` must end at once.
    CutShort,
}
