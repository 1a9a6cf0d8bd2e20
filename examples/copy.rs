//! A device copies memory that is not there yet.
//!
//! A simulated machine has one Intel VT-d and one copy engine with ATS and PRI. The engine's memory
//! is paged in on demand: it asks for each page that is missing, and the resolver below answers.
//! What stands in `owner` is what the owner of a device writes on any platform.

use portcullis::{Domain, DomainOptions, External, Iommu, PageGroup, Response, Sleep, driver::Start};
use portcullis_machine::machine::{INSTANCE, Machine, MachineConfig, plug, vtd};
use portcullis_machine::{
    board::Board,
    platform::{AnyPlatform, MachinePlatform},
};
use portcullis_models::bus::RequesterId;
use portcullis_models::endpoint::{CopyEngine, Endpoint, Job, JobEnd};
use portcullis_pgtable::Prot;
use std::{error::Error, sync::Arc};

const PAGE: u64 = 4096;
const SOURCE: u64 = 0x1_0000_0000;
const DESTINATION: u64 = 0x8_0000_0000;

/// What the resolver is handed: the data given to attach.
struct Memory(Domain<AnyPlatform, External<Memory>>);

/// Makes one page present: the file's at SOURCE and after, empty ones at DESTINATION and after.
fn bring_in(platform: &AnyPlatform, memory: &Memory, file: &[u8], page: u64) -> Option<()> {
    if memory.0.lookup(page).is_some() {
        return Some(()); // A page may be asked for twice.
    }
    let frame = platform.ram().page().ok()?;
    let content = file.get(page.checked_sub(SOURCE)? as usize..).unwrap_or_default();
    platform.ram().write(frame.0, &content[..content.len().min(PAGE as usize)]).ok()?;
    let rights = if page < DESTINATION { Prot::READ } else { Prot::READ | Prot::WRITE };
    memory.0.map_range(page, frame, PAGE, rights).ok()
}

fn owner(p: &AnyPlatform, iommu: &Iommu<AnyPlatform>, file: Arc<[u8]>) -> Result<Vec<u8>, Box<dyn Error>> {
    let cx = Sleep::in_sleepable_context();
    iommu.register(&cx, INSTANCE, vtd(p), Start::Fresh)?;
    let (place, spec) = plug(p, Endpoint::new(RequesterId(8), 0, Box::new(CopyEngine::new(4, 0))), true);
    let device = iommu.add_device(&cx, spec)?;
    let job = Job { source: SOURCE, destination: DESTINATION, len: file.len() as u64 };

    // A domain is an IOVA space. Its resolver decides what becomes of a page request group, and may
    // sleep; a group that it drops is answered Invalid.
    let platform = p.clone();
    let resolver = move |_: &Sleep<'_>, memory: &Arc<Memory>, group: PageGroup<'_, AnyPlatform>| {
        let present = |address| bring_in(&platform, memory, &file, address & !(PAGE - 1)).is_some();
        let all = group.requests().all(|request| present(request.address));
        // Somebody else, a deadline or a detach, may have answered before.
        let _ = group.respond(if all { Response::Success } else { Response::Invalid });
    };
    let domain = iommu.external_domain(&[&device], DomainOptions::default(), Some(resolver))?;

    // From attach to detach the device reaches what the domain maps, and nothing else.
    let attachment = iommu.attach(&cx, &domain, &device, None, Arc::new(Memory(domain.clone())))?;
    let submitted = p.hardware(|b: &mut Board| b.complex.endpoint_mut(place).map(|e| e.submit(job)));
    submitted.flatten().ok_or("no such endpoint")??;
    let ended = |b: &mut Board| b.complex.endpoint(place).and_then(Endpoint::job_end);
    while p.hardware(ended).flatten().is_none() {
        p.sleep(&cx, 50_000);
    }
    attachment.begin_detach(&cx).wait(&cx, None);

    let mut copy = vec![0; job.len as usize];
    for (iova, bytes) in (DESTINATION..).step_by(PAGE as usize).zip(copy.chunks_mut(PAGE as usize)) {
        let page = domain.lookup(iova).ok_or("a page was not written")?;
        p.ram().read(page.phys.0, bytes)?;
    }
    let end = p.hardware(ended).flatten();
    if end == Some(JobEnd::Done) { Ok(copy) } else { Err(format!("the copy ended with {end:?}").into()) }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut machine = Machine::new(MachineConfig::new(0))?;
    let mut file = std::fs::read(std::env::current_exe()?)?;
    file.truncate(4 << 20); // No page goes out again here, and the machine has 64 MiB.
    let (iommu, input) = (machine.iommu.clone(), file.clone().into());
    let copy = machine.run.call("owner", move |p| owner(p, &iommu, input).map_err(|e| e.to_string()))??;
    println!("{} bytes copied in {} of virtual time", copy.len(), machine.run.now());
    if copy == file { Ok(()) } else { Err("the copy differs".into()) }
}
