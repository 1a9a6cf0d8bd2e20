//! Only an owner that controls the mappings has a resolver.
#![allow(unused_imports)]
use portcullis::{Device, Domain, DomainOptions, External, Iommu, KernelDma, PageGroup, Platform, Sleep};
use std::sync::Arc;

#[rustfmt::skip]
fn f<P: Platform>(iommu: &Iommu<P>, device: &Device<P>) {
    let resolver = |_: &Sleep<'_>, _: &Arc<()>, group: PageGroup<'_, P>| drop(group);
    let made = iommu.external_domain(&[device], DomainOptions::default(), Some(resolver)).unwrap();
    let _domain: Domain<P, KernelDma> = made;
    let _other: Option<Domain<P, KernelDma>> = None;
}

fn main() {}
