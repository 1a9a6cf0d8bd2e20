//! Tables that somebody else makes: an address space of the CPU, or a guest.

use super::Board;
use portcullis::{AddressSpace, Faulted, Request, Sleep, TableSource};
use portcullis_pgtable::{Config, FormatDesc, IoTable, Phys, Table, VtdSecondStage};
use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

/// A table that every scripted instance can walk.
pub fn foreign(board: &Board, coherent: bool) -> Table<VtdSecondStage, Board> {
    let config = Config {
        input_bits: 48,
        output_bits: 46,
        page_sizes: 1 << 12,
        coherent,
        levels: 4,
        snoop: true,
        ..Config::default()
    };
    Table::new(board.clone(), config).expect("memory")
}

/// An address space of a kernel: its own table, and what faults found.
pub struct Mm {
    table: Table<VtdSecondStage, Board>,
    /// Where it was asked for a page.
    pub faults: Mutex<Vec<u64>>,
    /// Faults at these addresses are handled.
    has: Range<u64>,
}

impl Mm {
    pub fn new(board: &Board, has: Range<u64>) -> Arc<Mm> {
        Arc::new(Mm { table: foreign(board, false), faults: Mutex::default(), has })
    }
}

impl TableSource for Mm {
    fn desc(&self) -> FormatDesc {
        self.table.desc()
    }
    fn root(&self) -> Phys {
        self.table.root()
    }
}

impl AddressSpace for Mm {
    fn fault(&self, _: &Sleep<'_>, request: &Request) -> Faulted {
        self.faults.lock().unwrap().push(request.address);
        if self.has.contains(&request.address) { Faulted::Handled } else { Faulted::NotMapped }
    }
}
