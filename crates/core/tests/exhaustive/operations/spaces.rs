//! Address spaces and guests.

use super::{Case, Operation, on};
use crate::{
    common::*,
    rig::{Resolves, Rig, said},
};
use portcullis::{Bond, Domain, Nested, Sva, TableSource};
use std::{rc::Rc, sync::Arc};

/// An address space, or a guest's table: somebody else's in both cases.
fn theirs(rig: &Rig) -> Arc<Mm> {
    Mm::new(&rig.board, 0..u64::MAX)
}

pub type Space = Domain<Board, Sva<Mm>>;

pub fn space(rig: &Rig) -> Space {
    rig.iommu.address_space_domain(theirs(rig)).expect("made")
}

pub const ALL: &[Operation] = &[
    on("make the domain of an address space", |rig| {
        let mm = theirs(rig);
        let rig = rig.clone();
        Case::keeping(move || said(rig.iommu.address_space_domain(mm.clone())))
    }),
    on("bind", |rig| {
        let d = rig.device(1);
        let mm = space(rig);
        Case::keeping(move || said(mm.bind(&cx(), &d)))
    }),
    on("bind again", |rig| {
        let d = rig.device(1);
        let mm = space(rig);
        let first = mm.bind(&cx(), &d).expect("bound");
        Case::keeping(move || {
            let _ = &first;
            said(mm.bind(&cx(), &d))
        })
    }),
    on("unbind", |rig| {
        let (_, mut bond) = bound(rig);
        Case::new(move || {
            drop(bond.take().expect("it cannot be refused").unbind(&cx()).expect("it was the last"));
            Ok(())
        })
    }),
    on("bind again what is not bound any more", |rig| {
        let (mm, bond) = bound(rig);
        let d = rig.devices.borrow()[0].clone();
        drop(bond);
        rig.work();
        Case::keeping(move || said(mm.bind(&cx(), &d)))
    }),
    on("invalidate a range of an address space", |rig| {
        let (mm, bond) = bound(rig);
        Case::new(move || {
            let _ = &bond;
            said(mm.invalidate(&cx(), 0x1000..0x3000))
        })
    }),
    on("invalidate what leads through the kernel", |rig| {
        let (_mm, bond) = bound(rig);
        let rig = rig.clone();
        Case::new(move || {
            let _ = &bond;
            said(rig.iommu.invalidate_kernel_walks(&cx()))
        })
    }),
    on("end an address space", |rig| {
        let (mm, bond) = bound(rig);
        Case::new(move || {
            let _ = &bond;
            said(mm.exit(&cx()))
        })
    }),
    on("make a nested domain", |rig| {
        let d = rig.device(1);
        let (parent, table) = (rig.plain(&d), theirs(rig));
        let rig = rig.clone();
        Case::keeping(move || nested(&rig, &parent, &d, &table))
    }),
    on("attach to a nested domain, and unmap below it", |rig| {
        let d = rig.device(1);
        let parent = rig.plain(&d);
        let dom = nested(rig, &parent, &d, &theirs(rig)).expect("made");
        let (rig, hw) = (rig.clone(), rig.hw.clone());
        Case::keeping(move || {
            let a = said(rig.iommu.attach(&cx(), &dom, &d, None, data()))?;
            let mut gone = parent.unmapping();
            said(gone.unmap(0x1000, 0x1000))?;
            said(gone.sync(&cx()))?;
            Ok(a)
        })
        .and(move || format!("asked last: {:?}", hw.state().batches.last().map(|(tags, ..)| tags.len())))
    }),
    on("unmap below a guest and invalidate for it", |rig| {
        let d = rig.device(1);
        let parent = rig.plain(&d);
        let dom = nested(rig, &parent, &d, &theirs(rig)).expect("made");
        let a = rig.iommu.attach(&cx(), &dom, &d, None, data()).expect("attached");
        let mut gone = false;
        Case::new(move || {
            let _ = &a;
            let mut unmapping = parent.unmapping();
            if !gone {
                said(unmapping.unmap(0x1000, 0x1000))?;
                gone = true;
            }
            said(unmapping.sync(&cx()))?;
            said(dom.invalidate(&cx(), Some((0x1000, 0x1fff)), true))
        })
    }),
];

fn bound(rig: &Rc<Rig>) -> (Space, Option<Bond<Board>>) {
    let d = rig.device(1);
    let mm = space(rig);
    let bond = mm.bind(&cx(), &d).expect("bound");
    (mm, Some(bond))
}

fn nested(rig: &Rig, parent: &Dom, d: &Dev, table: &Arc<Mm>) -> Result<Domain<Board, Nested<Data>>, String> {
    said(rig.iommu.nested_domain(parent, &[d], table.clone() as Arc<dyn TableSource>, None::<Resolves>))
}
