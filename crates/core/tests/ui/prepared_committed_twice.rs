//! What was prepared is committed or abandoned, once.
use portcullis::driver::{Driver, Prepared};

fn f(driver: &dyn Driver, prepared: Prepared) {
    let first = driver.commit(prepared);
    drop((first, driver.commit(prepared)));
}

fn main() {}
