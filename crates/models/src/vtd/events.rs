//! A message-signalled event of the unit: its control, data and address registers.

use portcullis_spec::vtd::regs::EventControl;

use crate::iommu::Cx;

/// The four registers of an event (`[V]` 7.3, 7.5, 6.5.2.10). IP is kept until a step sends the
/// message: raising and unmasking only mark it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    control: EventControl,
    data: u32,
    addr: u32,
    upper: u32,
}

impl Event {
    pub(super) fn new() -> Self {
        Event { control: EventControl::RESET, data: 0, addr: 0, upper: 0 }
    }

    /// A condition arose while none was unserved.
    pub(super) fn raise(&mut self) {
        self.control.set_ip(true);
    }

    /// Software has served every condition.
    pub(super) fn settle(&mut self) {
        self.control.set_ip(false);
    }

    pub(super) fn is_due(&self) -> bool {
        self.control.ip() && !self.control.im()
    }

    pub(super) fn fire(&mut self, cx: &mut Cx<'_>) {
        if self.is_due() {
            self.control.set_ip(false);
            cx.interrupt(u64::from(self.upper) << 32 | u64::from(self.addr), self.data);
        }
    }

    /// Reads the register at this place: control, data, address, upper address.
    pub(super) fn read(&self, place: u32) -> u32 {
        match place {
            0 => self.control.into_bits(),
            1 => self.data,
            2 => self.addr,
            _ => self.upper,
        }
    }

    pub(super) fn write(&mut self, place: u32, value: u32) {
        match place {
            0 => self.control.set_im(EventControl::from_bits(value).im()),
            1 => self.data = value & 0xffff,
            2 => self.addr = value & !3,
            _ => self.upper = value,
        }
    }
}
