//! Words that are numbers in C and in the registry, and names in C, Lua and JSON.

/// An enum whose values each have a number and a name.
macro_rules! coded {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $code:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        #[allow(dead_code, reason = "not all of them are asked for everything")]
        impl $name {
            /// Every value.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The number that stands for it in C and, if it is stored, in the registry.
            #[must_use]
            pub const fn code(self) -> u32 {
                match self { $($name::$variant => $code,)* }
            }

            /// The value that a number stands for.
            #[must_use]
            pub const fn from_code(code: u32) -> Option<$name> {
                match code { $($code => Some($name::$variant),)* _ => None }
            }

            /// The name that C, Lua and JSON know it by.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

pub(crate) use coded;
