//! A guest's table stands on a domain whose mappings somebody chose for it.
#![allow(unused_imports)]
use portcullis::{Device, Domain, External, Iommu, KernelDma, Nested, PageGroup, Platform, Sleep, TableSource};
use std::sync::Arc;

type Parent = KernelDma;

fn f<P: Platform>(
    iommu: &Iommu<P>,
    parent: &Domain<P, Parent>,
    device: &Device<P>,
    table: Arc<dyn TableSource>,
) {
    let decide = |_: &Sleep<'_>, _: &Arc<()>, group: PageGroup<'_, P>| drop(group);
    let _ = iommu.nested_domain(parent, &[device], table, Some(decide));
}

fn main() {}
