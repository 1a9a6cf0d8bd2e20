//! A driver on a domain of the DMA API does not control the mappings: nothing stalls for it.
#![allow(unused_imports)]
use portcullis::{Domain, External, Iommu, KernelDma, Platform, Sleep, StallDecider, StalledAccess, Verdict};
use std::sync::Arc;

fn f<P: Platform>(cx: &Sleep<'_>, iommu: &Iommu<P>, domain: &Domain<P, KernelDma>) {
    let decide = |_: &Sleep<'_>, _: &Arc<()>, _: &StalledAccess| Verdict::Terminate;
    drop(iommu.enable_stall(cx, domain, StallDecider::sleeping(decide)));
}

fn main() {}
