//! An address space is bound, under the PASID that stands for it: it is never attached to a
//! requester id.
use portcullis::{AddressSpace, Device, Domain, Iommu, Platform, Sleep, Sva};

fn f<P: Platform, A: AddressSpace>(
    iommu: &Iommu<P>,
    domain: &Domain<P, Sva<A>>,
    device: &Device<P>,
    cx: &Sleep<'_>,
) {
    let _ = iommu.blocked_domain();
    let _ =
        iommu.attach(cx, domain, device, None, domain.address_space().clone());
}

fn main() {}
