//! A driver on a domain of the DMA API does not control the mappings: it decides no fault.
#![allow(unused_imports)]
use portcullis::{Device, DmaOptions, DomainOptions, Iommu, PageGroup, Platform, Sleep};
use std::sync::Arc;

fn f<P: Platform>(iommu: &Iommu<P>, device: &Device<P>) {
    let decide = |_: &Sleep<'_>, _: &Arc<()>, group: PageGroup<'_, P>| drop(group);
    let external = |resolver| iommu.external_domain::<(), _>(&[device], DomainOptions::default(), resolver);
    let _ = external(Some(decide));
}

fn main() {}
