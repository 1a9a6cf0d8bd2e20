//! Private data of page requests, which units after revisions 3.x of VT-d have.

use super::{
    paging::reads_own,
    room::Manner,
    stage::{Ending, Setting, perform},
};
use crate::pager::PAGE;
use portcullis::driver::Stage as Table;
use portcullis_models::endpoint::Intent;

const BASE: u64 = 0x4000_0000;
const PAGES: u64 = 8;

fn page(n: u64) -> u64 {
    BASE + n * PAGE
}

/// A device gives random bits with each page request, several in a group, and gets them back with
/// the answers: from a resolver, from a detach, for a page that does not exist. An answer that
/// brings back other bits, or a request that is not the last of its group and gets none, breaks
/// *settled once*.
pub fn private_data(setting: &Setting) -> Ending {
    let mut setting = setting.clone();
    setting.unit.private_data = true;
    setting.options.private_data = true;
    perform("private data", &setting, |stage, cx| {
        stage.start(cx)?;
        for (id, pasid, table) in [(0x08, None, Table::Second), (0x10, Some(7), Table::First)] {
            let device = stage.device(cx, id, true)?;
            device.endpoint(|e| e.set_private_data(true));
            let room = stage.paged_room(&[&device], table, BASE..page(PAGES), Manner::Serve(3_000))?;
            let lodger = room.attach(cx, &device, pasid)?;
            let open: Vec<_> = (0..PAGES).map(|n| device.begin(pasid, page(n), Intent::Read(16))).collect();
            for ticket in open {
                let _ = device.end(cx, ticket)?;
            }
            for n in 0..PAGES {
                reads_own(cx, &device, pasid, &room, page(n))?;
            }
            device.must_not(cx, pasid, page(PAGES), Intent::Read(16))?;
            room.unmap(cx, &room.pages())?;
            room.set_manner(Manner::Serve(50_000));
            let open: Vec<_> = (0..PAGES).map(|n| device.begin(pasid, page(n), Intent::Read(16))).collect();
            stage.sleep(cx, stage.rng(3).u64(..40_000))?;
            lodger.detach(cx)?;
            for ticket in open {
                let _ = device.end(cx, ticket)?;
            }
            let (requests, groups) = device
                .endpoint(|e| {
                    let s = e.statistics();
                    (s.page_requests, s.groups)
                })
                .ok_or("no endpoint")?;
            if stage.is_calm() && requests <= groups {
                return Err(format!("{requests} requests in {groups} groups: none was not the last"));
            }
        }
        Ok(())
    })
}
