//! Devices as the bus finds them.

use portcullis::driver::{DeviceControl, Stall};
use portcullis::{
    Access, Bus, DeviceCaps, DeviceId, DeviceSpec, InstanceId, Reason, SourceId, StallId, Upstream,
};
use std::sync::Arc;

pub const IOMMU: InstanceId = InstanceId(7);

/// What a well-behaved, trusted device with everything looks like.
pub fn spec(n: u32, control: Arc<dyn DeviceControl>) -> DeviceSpec {
    let upstreams = vec![Upstream { instance: IOMMU, sources: vec![SourceId(n)] }];
    DeviceSpec {
        trusted: true,
        caps: DeviceCaps {
            pasid_bits: 8,
            ats: true,
            invalidate_queue_depth: 0,
            page_requests: Some(8),
            stop_markers: false,
            coherent_dma: true,
            physical_function: None,
        },
        ..DeviceSpec::new(DeviceId(u64::from(n)), upstreams, control)
    }
}

/// The same on no PCIe, and it bears stalls.
pub fn soc(n: u32, control: Arc<dyn DeviceControl>) -> DeviceSpec {
    let mut spec = spec(n, control);
    (spec.bus, spec.trusted, spec.caps.page_requests) = (Bus::Platform { may_stall: true }, false, None);
    spec
}

/// A write that faults and is held under this tag, at the page of the same number.
pub fn stall(source: u32, tag: u64) -> Stall {
    Stall {
        id: StallId(tag),
        source: SourceId(source),
        pasid: None,
        address: tag << 12,
        access: Access::Write,
        privileged: false,
        stage: None,
        reason: Reason::NotMapped,
        code: 0x10,
        raw: [tag, 0, 0, 0],
    }
}
