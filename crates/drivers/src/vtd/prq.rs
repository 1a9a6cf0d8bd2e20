//! The page-request queue (`[V]` 7.4, 7.5, 11.4.11): what devices ask, in the order they asked.

use super::{queue::Queue, regs::Regs};
use portcullis::{
    Code, Pasid, Platform, ShortLock, SourceId, Turn, VendorBits,
    driver::{DrainEnd, InvSeq, More, PageRequest, QueuePos, Taken},
};
use portcullis_pgtable::{FRAME_SIZE, Fresh, Phys};
use portcullis_spec::vtd::{
    page_req::{self, PAGE_REQ_SIZE, PAGE_REQ_TYPE, PRQ_SHIFT, ResponseCode},
    private_data::{self, PrivateData},
    qi::{Desc, PageGroupResponse},
    regs::{Pqa, Pqh, Pqt, Prs},
    split,
};

/// Entries of a frame.
const PER_FRAME: u32 = (FRAME_SIZE / PAGE_REQ_SIZE) as u32;

/// The page-request queue of one unit.
pub(super) struct Requests<P: Platform> {
    regs: Regs<P>,
    mem: P,
    /// Private data of requests are taken as such, and given back.
    private_data: bool,
    /// Bits of the widest address that a table of the unit translates.
    address_bits: u32,
    state: P::Lock<Option<State>>,
}

#[derive(Clone, Copy)]
struct State {
    first: Phys,
    /// A power of two. One of them stays empty: the queue is full with one less (`[V]` 7.4.1).
    entries: u32,
    /// The entry to be read next, and how many were read since start.
    head: u32,
    passed: u64,
    /// What was the newest submission to the invalidation queue when the last overflow was cleared.
    /// A drain that was submitted before may have missed requests. `u64::MAX` while it is being
    /// cleared.
    overflowed: u64,
}

impl<P: Platform> Requests<P> {
    pub(super) fn new(regs: Regs<P>, mem: P, private_data: bool, address_bits: u32) -> Requests<P> {
        let state = mem.lock(None);
        Requests { regs, mem, private_data, address_bits, state }
    }

    /// Programs an empty queue in these frames, 128 at most.
    pub(super) fn set_up(&self, frames: Fresh) {
        let order = frames.order();
        let (first, entries) = (frames.publish(), PER_FRAME << order);
        self.state.with(|s| {
            *s = Some(State { first, entries, head: 0, passed: 0, overflowed: 0 });
        });
        self.regs.set_pqh(Pqh::new());
        self.regs.set_pqt(Pqt::new());
        self.regs.set_pqa(Pqa::new().with_pqs(order as u8).with_pqa(first.0));
        self.regs.clear_prs(Prs::from_bits(Prs::W1C));
    }

    /// Requests that it holds; none before it is set up.
    pub(super) fn capacity(&self) -> u32 {
        self.state.with(|s| s.map_or(0, |s| s.entries - 1))
    }

    /// Whether there is something to read, or an overflow to clear.
    pub(super) fn pending(&self) -> bool {
        let running = self.state.with(|s| s.is_some());
        running && {
            let prs = self.regs.prs();
            prs.ppr() || prs.pro()
        }
    }

    /// Hands over what is in the queue.
    pub(super) fn service(&self, turn: &mut Turn<'_>, queue: &Queue<P>) -> More {
        let Some(mut state) = self.state.with(|s| *s) else {
            return More::No;
        };
        // Before the tail is read: what comes later sets it again, and is told again ([V] 7.5).
        self.regs.clear_prs(Prs::new().with_ppr(true));
        let (more, moved) = self.hand_over(turn, &mut state);
        if moved {
            self.state.with(|s| {
                let offset = u64::from(state.head) << PRQ_SHIFT;
                self.regs.set_pqh(Pqh::new().with_pqh(offset));
                *s = Some(state);
            });
        }
        turn.passed(QueuePos(state.passed));
        if self.regs.prs().pro() && self.tail(&state) == state.head {
            turn.overflow();
            self.clear_overflow(queue);
            return More::Yes;
        }
        more
    }

    /// Reads entries until the queue is empty, the turn's bound is reached, or the core has no room.
    fn hand_over(&self, turn: &mut Turn<'_>, state: &mut State) -> (More, bool) {
        let mut moved = false;
        let tail = self.tail(state);
        while state.head != tail {
            if !turn.spend() {
                return (More::Yes, moved);
            }
            let taken = match self.read(state) {
                Decoded::StopMarker => Taken::Yes,
                Decoded::Request(r) => turn.page_request(r),
                Decoded::Malformed(r) => turn.malformed(r),
            };
            if taken == Taken::NoRoom {
                return (More::Yes, moved);
            }
            state.head = (state.head + 1) % state.entries;
            state.passed += 1;
            moved = true;
        }
        let more = if self.tail(state) == tail { More::No } else { More::Yes };
        (more, moved)
    }

    /// Lets the hardware queue requests again.
    fn clear_overflow(&self, queue: &Queue<P>) {
        let stamp = |n| {
            self.state.with(|s| {
                if let Some(s) = s {
                    s.overflowed = n;
                }
            })
        };
        // Drains that end before the bit is clear, and those that begin before, have to be repeated.
        stamp(u64::MAX);
        self.regs.clear_prs(Prs::new().with_pro(true));
        stamp(queue.newest().0);
    }

    /// The end of a drain whose fence is complete.
    pub(super) fn drain_end(&self, fence: InvSeq) -> DrainEnd {
        // Before the stamp is looked at: a bit that somebody cleared has left its stamp.
        if self.regs.prs().pro() {
            return DrainEnd::Again;
        }
        self.state.with(|s| match s {
            None => DrainEnd::At(QueuePos(0)),
            Some(s) if s.overflowed >= fence.0 => DrainEnd::Again,
            Some(s) => {
                let ahead = (self.tail(s) + s.entries - s.head) % s.entries;
                DrainEnd::At(QueuePos(s.passed + u64::from(ahead)))
            }
        })
    }

    /// The entry that hardware writes next. What it says is not trusted to be inside the queue.
    fn tail(&self, state: &State) -> u32 {
        (self.regs.pqt().pqt() >> PRQ_SHIFT) as u32 % state.entries
    }

    /// The entry at the head.
    fn read(&self, state: &State) -> Decoded {
        let (frame, entry) = (state.head / PER_FRAME, state.head % PER_FRAME);
        let frame = Phys(state.first.0 + u64::from(frame) * FRAME_SIZE as u64);
        let at = entry as usize * (PAGE_REQ_SIZE / 16);
        let [q0, q1] = split(self.mem.load128(frame, at));
        let [q2, q3] = split(self.mem.load128(frame, at + 1));
        match self.private_data {
            true => {
                let (qw, private) = private_data::take_from_request([q0, q1, q2, q3]);
                decode(qw, private, self.address_bits)
            }
            false => decode([q0, q1, q2, q3], None, self.address_bits),
        }
    }
}

/// What an entry turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// The device has sent all its requests of a PASID. Nobody answers it.
    StopMarker,
    /// A request.
    Request(PageRequest),
    /// A request that no device of ours has a right to make.
    Malformed(PageRequest),
}

/// Decodes an entry out of which private data were taken before, where the unit has them.
pub(super) fn decode(qw: [u64; 4], private: Option<PrivateData>, address_bits: u32) -> Decoded {
    let d = page_req::PageRequest::from_qwords(qw);
    let request = PageRequest {
        source: SourceId(d.rid().into()),
        pasid: d.pp().then(|| Pasid::new(d.pasid())).flatten(),
        index: d.prgi(),
        address: d.address(),
        read: d.rdr(),
        write: d.wrr(),
        exec: d.exr() && d.pp() && d.rdr(),
        privileged: d.pmr(),
        last: d.lpig(),
        own_answer: private.is_some(),
        vendor: VendorBits(private_data::request(d, private)),
    };
    let well_formed = d.ty() == PAGE_REQ_TYPE
        && d.into_bits() & page_req::PageRequest::RESERVED == 0
        && qw[2..] == [0, 0]
        // PASID 0 is what requests without one use (SCT.9).
        && (!d.pp() || request.pasid.is_some());
    if well_formed && d.is_stop_marker() {
        return Decoded::StopMarker;
    }
    let may_be_asked = (d.rdr() || d.wrr())
        && is_canonical(request.address, address_bits)
        // SRE is never set, and no format has execute permission.
        && !request.privileged
        && !request.exec;
    if well_formed && may_be_asked { Decoded::Request(request) } else { Decoded::Malformed(request) }
}

/// Whether an address fits a second stage of so many bits, or the upper half that a first stage of
/// as many has (`[V]` 3.6). The table that it meets knows its own width.
fn is_canonical(address: u64, bits: u32) -> bool {
    let upper = address >> (bits - 1);
    upper <= 1 || upper == u64::MAX >> (bits - 1)
}

/// The response to the request that gave `vendor`: addressed as that was, with its private data
/// unchanged.
pub(super) fn response(vendor: VendorBits, code: Code) -> Desc {
    // Without private data the bit that says so is clear, whatever hardware wrote there.
    let (qw, private) = private_data::take_from_request(vendor.0);
    let d = page_req::PageRequest::from_qwords(qw);
    let pasid = d.pp().then(|| d.pasid());
    let response = PageGroupResponse::respond(d.rid(), pasid, d.prgi(), wire_code(code));
    private_data::response(response, private)
}

/// The wire code (`[V]` table 32).
pub(super) fn wire_code(code: Code) -> ResponseCode {
    match code {
        Code::Success => ResponseCode::Success,
        Code::Invalid => ResponseCode::InvalidRequest,
        Code::Failure => ResponseCode::ResponseFailure,
    }
}
