//! A group leaves its resolver only deferred.
use portcullis::{Deferred, PageGroup, Platform, Resolver, Sleep};
use std::sync::{Arc, Mutex};

struct Keeps<P: Platform>(Mutex<Vec<Deferred<P>>>);

fn keep<P: Platform>(_: &Mutex<Vec<PageGroup<'static, P>>>, _: PageGroup<'static, P>) {}

impl<P: Platform> Resolver<P, Mutex<Vec<PageGroup<'static, P>>>> for Keeps<P> {
    fn resolve(&self, _: &Sleep<'_>, data: &Arc<Mutex<Vec<PageGroup<'static, P>>>>, group: PageGroup<'_, P>) {
        self.0.lock().unwrap().push(group.defer());
        let _ = (data, keep::<P>);
    }
}

fn main() {}
