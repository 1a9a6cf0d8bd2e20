//! An address space decides its faults itself: nobody sets a handler on its domain.
use portcullis::{AddressSpace, Iommu, PageGroup, Platform, Sleep};
use std::sync::Arc;

fn f<P: Platform, A: AddressSpace>(iommu: &Iommu<P>, space: Arc<A>) {
    let decide = |_: &Sleep<'_>, _: &Arc<A>, group: PageGroup<'_, P>| drop(group);
    let _ = iommu.address_space_domain(space, Some(decide));
}

fn main() {}
