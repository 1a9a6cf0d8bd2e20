//! Domains of each owner, and what their owners do with them.

use super::{Case, Operation, devices::with_direct, on};
use crate::{
    common::*,
    rig::{Resolves, Rig, said, succeeds},
};
use portcullis::{
    Direction, DmaOptions, Domain, DomainOptions, ImmediateResolver, KernelDma, MappingHistory, MsiWindow,
    PageGroup, Provenance, Response, UserObject,
};
use portcullis_pgtable::{Phys, Prot};
use std::{rc::Rc, sync::Arc};

const WINDOW: MsiWindow = MsiWindow { base: 0x800_0000, len: 0x3000 };
const M2: u64 = 1 << 21;
const DMA_LIMIT: u64 = (1 << 40) - 1;

struct AtOnce;

impl ImmediateResolver<Board, Data> for AtOnce {
    fn resolve(&self, _: &Arc<Data>, group: PageGroup<'_, Board>) {
        group.respond(Response::Success).expect("not answered yet");
    }
}

/// Makes something of a device, and keeps it.
fn makes<T: 'static>(rig: &Rc<Rig>, make: fn(&Rig, &Dev) -> Result<T, String>) -> Case {
    let d = rig.add(with_direct(rig)).expect("added");
    let rig = rig.clone();
    Case::keeping(move || make(&rig, &d))
}

pub const ALL: &[Operation] = &[
    on("make a blocked domain", |rig| makes(rig, |rig, _| said(rig.iommu.blocked_domain()))),
    on("make an identity domain", |rig| makes(rig, |rig, _| said(rig.iommu.identity_domain()))),
    on("make an external domain", |rig| {
        makes(rig, |rig, d| {
            let options = DomainOptions { msi_window: Some(WINDOW), ..DomainOptions::default() };
            said(rig.iommu.external_domain(&[d], options, Some(succeeds as Resolves)))
        })
    }),
    on("make an external domain for two devices", |rig| {
        rig.device(2);
        makes(rig, |rig, d| {
            let other = rig.devices.borrow()[0].clone();
            let options =
                DomainOptions { coherent: true, page_requests: Some(4), ..DomainOptions::default() };
            said(rig.iommu.external_domain(&[d, &other], options, Some(succeeds as Resolves)))
        })
    }),
    on("make an external domain with an immediate resolver", |rig| {
        makes(rig, |rig, d| {
            said(rig.iommu.external_domain_immediate::<Data, _>(&[d], DomainOptions::default(), AtOnce))
        })
    }),
    on("make a domain of a user's object", |rig| {
        makes(rig, |rig, d| {
            let made: Result<Domain<Board, UserObject<Data>>, _> =
                rig.iommu.user_object_domain(&[d], DomainOptions::default(), Some(succeeds as Resolves));
            said(made)
        })
    }),
    on("make a domain of a user's object with an immediate resolver", |rig| {
        makes(rig, |rig, d| {
            said(rig.iommu.user_object_domain_immediate::<Data, _>(&[d], DomainOptions::default(), AtOnce))
        })
    }),
    on("make a domain of the DMA API", |rig| {
        makes(rig, |rig, d| {
            said(rig.iommu.kernel_dma_domain(&[d], DmaOptions { mappings: 8, ..DmaOptions::default() }))
        })
    }),
    on("map a page", |rig| maps(rig, 0x20_0000, 0x1000)),
    on("map across tables", |rig| maps(rig, 0x7f_ffff_f000, 0x2000)),
    on("map large and small", |rig| maps(rig, M2 - 0x1000, M2 + 0x2000)),
    on("unmap and sync", |rig| {
        let (dom, case) = mapped(rig);
        let mut gone = false;
        case.then(move || {
            let mut unmapping = dom.unmapping();
            if !gone {
                said(unmapping.unmap(M2, M2))?;
                said(unmapping.unmap(0x1000, 0x1000))?;
                gone = true;
            }
            said(unmapping.sync(&cx()))
        })
    }),
    on("unmap without a sync, and flush", |rig| {
        let (dom, case) = mapped(rig);
        let mut gone = false;
        case.then(move || {
            if !gone {
                said(dom.unmapping().unmap(M2, M2))?;
                gone = true;
            }
            said(dom.flush(&cx()))
        })
    }),
    on("read accessed bits", |rig| {
        let (dom, case) = mapped(rig);
        case.then(move || said(dom.accessed(0, 2 * M2, true)).map(drop))
    }),
    on("track dirty pages", |rig| {
        let (dom, case) = mapped(rig);
        case.then(move || {
            assert!(dom.can_track_dirty());
            said(dom.set_dirty_tracking(&cx(), true))?;
            said(dom.read_dirty(0, 2 * M2, |_, _| {}))?;
            said(dom.read_and_clear_dirty(&cx(), 0, 2 * M2, |_, _| {}))?;
            said(dom.set_dirty_tracking(&cx(), false))
        })
    }),
    on("map a doorbell", |rig| {
        let d = rig.device(1);
        let options = DomainOptions { msi_window: Some(WINDOW), ..DomainOptions::default() };
        let made = rig.iommu.external_domain(&[&d], options, None::<Resolves>);
        let dom: Dom = made.expect("made");
        let seen = dom.clone();
        Case::new(move || said(dom.map_msi(&cx(), Phys(0x808_0040))).map(drop))
            .and(move || format!("{:?}", seen.lookup(WINDOW.base).map(|leaf| leaf.phys)))
    }),
    on("map for DMA", |rig| {
        let (rig, d, dom) = dma(rig);
        let a = rig.iommu.attach(&cx(), &dom, &d, None, Arc::new(())).expect("attached");
        Case::keeping(move || {
            let _ = &a;
            said(dom.dma_map(Phys(0x12_3456), 0x2000, Direction::FromDevice))
        })
    }),
    on("map for DMA beside a direct region of a late device", |rig| {
        let (rig, _, dom) = dma(rig);
        let late = rig.add(with_direct_at_the_top(&rig)).expect("added");
        let a = rig.iommu.attach(&cx(), &dom, &late, None, Arc::new(())).expect("attached");
        Case::keeping(move || {
            let _ = &a;
            said(dom.dma_map(Phys(0x12_3456), 0x2000, Direction::Both))
        })
    }),
    on("unmap from DMA", |rig| {
        let (rig, d, dom) = dma(rig);
        let a = rig.iommu.attach(&cx(), &dom, &d, None, Arc::new(())).expect("attached");
        let mut mapping = Some(dom.dma_map(Phys(0x12_3456), 0x2000, Direction::Both).expect("mapped"));
        Case::new(move || {
            let _ = &a;
            said(mapping.take().expect("it cannot be refused").unmap(&cx()))
        })
    }),
    on("drop a mapping for DMA, and flush", |rig| {
        let (rig, d, dom) = dma(rig);
        let a = rig.iommu.attach(&cx(), &dom, &d, None, Arc::new(())).expect("attached");
        let mut mapping = Some(dom.dma_map(Phys(0x12_3456), 0x2000, Direction::Both).expect("mapped"));
        Case::new(move || {
            let _ = &a;
            drop(mapping.take());
            said(dom.flush(&cx()))
        })
    }),
];

impl Case {
    /// The same with another thing to do.
    fn then(self, run: impl FnMut() -> Result<(), String> + 'static) -> Case {
        Case { run: Box::new(run), ..self }
    }
}

fn maps(rig: &Rc<Rig>, iova: u64, len: u64) -> Case {
    let d = rig.device(1);
    let dom = rig.plain(&d);
    let seen = dom.clone();
    Case::new(move || said(dom.map_range(iova, Phys(iova % M2), len, Prot::READ)))
        .and(move || format!("{:?} {:?}", seen.lookup(iova), seen.lookup(iova + len - 0x1000)))
}

/// A domain with a page and a table's worth of pages, and a device attached.
fn mapped(rig: &Rc<Rig>) -> (Dom, Case) {
    let d = rig.device(1);
    let dom = rig.plain(&d);
    // Pages, not a large leaf, so that a table goes with them.
    dom.map_range(M2, Phys(0x3000), M2, RW).expect("mapped");
    let a = rig.attach(&dom, &d);
    let seen = dom.clone();
    let case = Case::new(|| Ok(())).and(move || {
        let _ = &a;
        let known = match seen.provenance(M2) {
            Provenance::Known(MappingHistory { gone, .. }) => gone.map(|g| g.invalidated.is_some()),
            other => panic!("it was mapped: {other:?}"),
        };
        format!("{:?} {:?} {known:?}", seen.lookup(0x1000), seen.lookup(M2))
    });
    (dom, case)
}

fn dma(rig: &Rc<Rig>) -> (Rc<Rig>, Dev, Domain<Board, KernelDma>) {
    let mut spec = rig.spec(1);
    spec.caps.coherent_dma = false;
    let d = rig.add(spec).expect("added");
    let options = DmaOptions { mappings: 4, limit: DMA_LIMIT, ..DmaOptions::default() };
    let dom = rig.iommu.kernel_dma_domain(&[&d], options).expect("made");
    (rig.clone(), d, dom)
}

/// A device that needs what the DMA API would give out next.
fn with_direct_at_the_top(rig: &Rig) -> portcullis::DeviceSpec {
    let mut spec = rig.spec(2);
    spec.regions = vec![portcullis::ReservedRegion::direct(DMA_LIMIT + 1 - 0x2000, 0x2000, RW)];
    spec
}
