//! Models that hold, and models that fail without a line of the code they run.

use portcullis_sync::mutate::{Line, take_away};

/// Takes a line away, until it is dropped, also after a model failed.
pub struct Without;

impl Without {
    pub fn line(line: Line) -> Without {
        take_away(Some(line));
        Without
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        take_away(None);
    }
}

/// A test for each line: the model fails without it.
#[macro_export]
macro_rules! fails_without {
    ($($name:ident: $line:ident, $model:ident;)*) => {
        mod fails_without {
            $(
                #[test]
                #[should_panic]
                fn $name() {
                    let _without = $crate::lines::Without::line(portcullis_sync::mutate::Line::$line);
                    super::$model()
                }
            )*
        }
    };
}
