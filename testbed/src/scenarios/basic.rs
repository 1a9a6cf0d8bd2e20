//! probe

use crate::rig::{Rig, Who};
use crate::stage::{PAGE, RW, Stage};
use portcullis_pgtable::Prot;

/// probe
pub fn probe<R: Rig>(s: &mut Stage<R>) {
    let f = s.write_stopped(Who::Teller, 0x100_0000, 64);
    println!("unknown {f}");
    let teller = s.add(Who::Teller);
    let f = s.write_stopped(Who::Teller, 0x100_0000, 64);
    println!("blocked {f}");
    let f = s.write_stopped(Who::First, 0x100_0000, 64);
    println!("unknown neighbour {f}");
    let first = s.add(Who::First);
    let space = s.space(&first);
    let (a, b) = (s.page(), s.page());
    s.map(&space, 0x100_0000, a, PAGE, RW);
    s.map(&space, 0x100_3000, b, PAGE, Prot::READ);
    let at = s.attach(&first, &space);
    let at2 = s.attach(&teller, &space);
    s.lands(Who::First, 0x100_0000, &[(a, 4096)]);
    s.lands(Who::Teller, 0x100_0000, &[(a, 4096)]);
    s.fetches(&at, 0x100_0000, a, 100);
    s.fetches(&at, 0x100_3000, b, 100);
    let f = s.write_stopped(Who::Teller, 0x100_3000, 64);
    println!("ro {f}");
    let f = s.write_stopped(Who::Teller, 0x100_4000, 64);
    println!("unmapped write {f}");
    let f = s.write_stopped(Who::First, 0x100_4000, 64);
    println!("unmapped write {f}");
    let f = s.read_stopped(&at, 0x100_4000, 64);
    println!("unmapped read {f}");
    let f = s.read_stopped(&at, 0x1_0000_4000, 64);
    println!("unmapped read {f}");
    let f = s.write_stopped(Who::First, 1 << 47, 64);
    println!("out of range {f}");
    let f = s.write_stopped(Who::First, 1 << 50, 64);
    println!("out of range {f}");
    s.detach(at);
    s.detach(at2);
    let f = s.write_stopped(Who::First, 0x100_0000, 64);
    println!("detached {f}");
    let f = s.idle_read_stopped(Who::First, 0x100_0000, 64);
    println!("detached {f}");
}

/// probe2
pub fn probe2<R: Rig>(s: &mut Stage<R>) {
    let first = s.add(Who::First);
    let space = s.space(&first);
    let a = s.page();
    s.map(&space, 0x100_0000, a, PAGE, RW);
    let at = s.attach(&first, &space);
    s.lands(Who::First, 0x100_0000, &[(a, 4096)]);
    s.detach(at);
    let f = s.write_stopped(Who::First, 0x100_0000, 64);
    println!("detached {f}");
}
/// probe3
pub fn probe3<R: Rig>(s: &mut Stage<R>) {
    let first = s.add(Who::First);
    let teller = s.add(Who::Teller);
    let space = s.space(&first);
    let a = s.page();
    s.map(&space, 0x100_0000, a, PAGE, RW);
    let at = s.attach(&first, &space);
    let at2 = s.attach(&teller, &space);
    s.lands(Who::First, 0x100_0000, &[(a, 4096)]);
    s.lands(Who::Teller, 0x100_0000, &[(a, 4096)]);
    s.detach(at);
    let f = s.write_stopped(Who::First, 0x100_0000, 64);
    println!("detached {f}");
    s.detach(at2);
}
