//! The macro behind every field encoding that has reserved values.

/// Declares a fieldless enum with its codes, `bits` and a `from_bits` that refuses reserved values.
macro_rules! encoding {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $code:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$vmeta])* $variant = $code,)+
        }

        impl $name {
            /// Every value, in ascending order of code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The code as it stands in the field.
            #[must_use]
            pub const fn bits(self) -> u8 {
                self as u8
            }

            /// The value with this code, or `None` where the manual reserves it.
            #[must_use]
            pub const fn from_bits(bits: u8) -> Option<Self> {
                match bits {
                    $($code => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}
