//! The ways in which headcount gets into a server.

use std::fmt;
use std::str::FromStr;

use testkit::Integration;

/// Which server, and how headcount gets into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// nginx with `resty.headcount`.
    Lua,
    /// nginx with the native module.
    Module,
    /// nginx with both.
    Both,
    /// The example server of the core, in Rust.
    Rust,
}

impl Front {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Lua, Self::Module, Self::Both, Self::Rust];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lua => "lua",
            Self::Module => "module",
            Self::Both => "both",
            Self::Rust => "rust",
        }
    }

    /// Whether it is an nginx.
    pub fn is_nginx(self) -> bool {
        self != Self::Rust
    }

    /// How headcount gets into an nginx.
    pub fn integration(self) -> Integration {
        match self {
            Self::Module => Integration::Native,
            Self::Both => Integration::Both,
            Self::Lua | Self::Rust => Integration::Lua,
        }
    }

    /// Whether its workers have roles, onces and locks.
    pub fn has_singletons(self) -> bool {
        self != Self::Module
    }

    /// Whether its callbacks are code of the user's, in which something can happen.
    pub fn has_own_callbacks(self) -> bool {
        matches!(self, Self::Lua | Self::Both)
    }
}

impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Front {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|front| front.name() == text);
        known.ok_or_else(|| format!("{text:?} is no front: lua, module, both or rust"))
    }
}
