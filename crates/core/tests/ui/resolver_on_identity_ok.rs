//! Nobody decides what an identity domain maps.
#![allow(unused_imports)]
use portcullis::{Device, DomainOptions, Iommu, PageGroup, Platform, Sleep};
use std::sync::Arc;

fn f<P: Platform>(iommu: &Iommu<P>, device: &Device<P>) {
    let decide = |_: &Sleep<'_>, _: &Arc<()>, group: PageGroup<'_, P>| drop(group);
    let external = |resolver| iommu.external_domain::<(), _>(&[device], DomainOptions::default(), resolver);
    let _ = external(Some(decide));
}

fn main() {}
