//! An address space decides its faults itself: nobody else decides what stalls in it.
#![allow(unused_imports)]
use portcullis::{AddressSpace, Domain, External, Iommu, Platform, Sleep, StallDecider, StalledAccess, Sva, Verdict};
use std::sync::Arc;

fn f<P: Platform, A: AddressSpace>(cx: &Sleep<'_>, iommu: &Iommu<P>, domain: &Domain<P, Sva<A>>) {
    let decide = |_: &Sleep<'_>, _: &Arc<A>, _: &StalledAccess| Verdict::Terminate;
    drop(iommu.enable_stall(cx, domain, StallDecider::sleeping(decide)));
}

fn main() {}
