//! The public operations of the core, each with the state that it starts from.

use crate::rig::Rig;
use std::rc::Rc;

mod attachments;
pub mod devices;
mod domains;
pub mod spaces;
pub mod stalls;

/// One operation.
pub struct Operation {
    pub name: &'static str,
    /// Whether its machine has no instance yet.
    pub bare: bool,
    /// Brings the machine to where it starts.
    pub make: fn(&Rc<Rig>) -> Case,
}

/// An operation about to begin.
pub struct Case {
    /// Does it. Refused, it can be done again.
    pub run: Box<dyn FnMut() -> Result<(), String>>,
    /// What else there is to be seen of the state.
    pub look: Box<dyn Fn() -> String>,
}

impl Case {
    fn new(run: impl FnMut() -> Result<(), String> + 'static) -> Case {
        Case { run: Box::new(run), look: Box::new(String::new) }
    }

    /// One that makes something, which is kept.
    fn keeping<T: 'static>(mut make: impl FnMut() -> Result<T, String> + 'static) -> Case {
        let mut kept = None;
        Case::new(move || {
            kept.replace(make()?);
            Ok(())
        })
    }

    fn and(self, look: impl Fn() -> String + 'static) -> Case {
        Case { look: Box::new(look), ..self }
    }
}

const fn on(name: &'static str, make: fn(&Rc<Rig>) -> Case) -> Operation {
    Operation { name, bare: false, make }
}

const fn bare(name: &'static str, make: fn(&Rc<Rig>) -> Case) -> Operation {
    Operation { name, bare: true, make }
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Operation> {
    [devices::ALL, domains::ALL, attachments::ALL, spaces::ALL, stalls::ALL].into_iter().flatten()
}
