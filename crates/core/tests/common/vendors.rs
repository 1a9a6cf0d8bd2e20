//! Vendors: what their scripted instances differ in.

use super::Board;
use portcullis::driver::{Incompatible, PrepareError, TableRequest};
use portcullis_pgtable::{AmdV1, ArmStage1, Config, Format, FormatDesc, IoTable, Table, VtdSecondStage};

/// The format of a vendor's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    VtdSecondStage,
    /// Stage 1 with a granule of 16 KiB.
    Arm16K,
    AmdV1,
}

/// What an instance is like.
#[derive(Clone, Copy, Debug)]
pub struct Vendor {
    pub form: Form,
    pub input_bits: u8,
    pub page_sizes: u64,
    pub coherent: bool,
    pub pasid_bits: u8,
    pub identity: bool,
    /// Calls of start that find the hardware not ready.
    pub slow_start: u32,
}

pub const K4: u64 = 1 << 12;
pub const K16: u64 = 1 << 14;
pub const M2: u64 = 1 << 21;

impl Vendor {
    /// The instance of most tests.
    pub const INTEL: Vendor = Vendor {
        form: Form::VtdSecondStage,
        input_bits: 48,
        page_sizes: K4 | M2,
        coherent: true,
        pasid_bits: 20,
        identity: true,
        slow_start: 0,
    };
    /// Walks the same tables with one level less.
    pub const NARROW: Vendor = Vendor { input_bits: 39, pasid_bits: 0, ..Vendor::INTEL };
    /// Walks the same tables, but no large leaves.
    pub const SMALL: Vendor = Vendor { page_sizes: K4, ..Vendor::INTEL };
    /// Walks the same tables, but past the caches.
    pub const STALE: Vendor = Vendor { coherent: false, ..Vendor::INTEL };
    pub const AMD: Vendor =
        Vendor { form: Form::AmdV1, pasid_bits: 16, page_sizes: K4, slow_start: 1, ..Vendor::INTEL };
    pub const ARM: Vendor = Vendor {
        form: Form::Arm16K,
        page_sizes: K16,
        coherent: false,
        pasid_bits: 8,
        identity: false,
        slow_start: 3,
        ..Vendor::INTEL
    };

    /// With `marks`, walkers keep accessed and dirty bits.
    pub fn new_table(
        &self,
        board: &Board,
        request: TableRequest,
        marks: bool,
    ) -> Result<Box<dyn IoTable>, PrepareError> {
        let config = Config {
            input_bits: match request.input_bits {
                0 => self.input_bits,
                asked => asked.min(self.input_bits),
            },
            output_bits: 46,
            page_sizes: request.page_sizes & self.page_sizes,
            coherent: self.coherent,
            snoop: self.form == Form::VtdSecondStage && self.coherent,
            accessed: marks,
            dirty: marks,
            ..Config::default()
        };
        match self.form {
            Form::VtdSecondStage => made::<VtdSecondStage>(board, config),
            Form::Arm16K => made::<ArmStage1<14>>(board, config),
            Form::AmdV1 => made::<AmdV1>(board, config),
        }
    }

    fn format(&self) -> &'static str {
        match self.form {
            Form::VtdSecondStage => "vtd-ss",
            Form::Arm16K => "arm-s1-16k",
            Form::AmdV1 => "amd-v1",
        }
    }

    pub fn can_walk(&self, desc: &FormatDesc) -> Result<(), Incompatible> {
        if desc.id.0 != self.format() {
            return Err(Incompatible::NoCommonFormat);
        }
        if desc.coherent && !self.coherent {
            return Err(Incompatible::NotCoherent);
        }
        if desc.input_bits > self.input_bits {
            return Err(Incompatible::InputWidth { table: desc.input_bits, walker: self.input_bits });
        }
        if desc.page_sizes & !self.page_sizes != 0 {
            return Err(Incompatible::PageSizes { table: desc.page_sizes, walker: self.page_sizes });
        }
        Ok(())
    }
}

fn made<F: Format>(board: &Board, config: Config) -> Result<Box<dyn IoTable>, PrepareError> {
    let table = Table::<F, Board>::new(board.clone(), config);
    table.map(|t| Box::new(t) as Box<dyn IoTable>).map_err(|_| PrepareError::NoMem)
}
