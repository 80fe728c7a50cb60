//! A worker's whole life, driven by its event loop.

use headcount_core::{ErrorKind, Generation, Member, MemberState, Moment, Step};

use crate::border::entry::{Failure, Sized32, check_struct, entry, read_struct};
use crate::border::event::{EventOut, EventRecord};
use crate::border::options::JoinOptions;
use crate::handle::process::Process;
use crate::handle::{self, Handle};

/// It serves, and could not join yet: it is not counted.
pub const HEADCOUNT_MEMBER_WAITING: u32 = 1;
/// It has joined.
pub const HEADCOUNT_MEMBER_SERVING: u32 = 2;
/// It takes no new work.
pub const HEADCOUNT_MEMBER_DRAINING: u32 = 3;
/// It has left, or will never join.
pub const HEADCOUNT_MEMBER_LEFT: u32 = 4;

/// What a member needs next. Set `struct_size` before each call that fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct StepRecord {
    /// sizeof(headcount_step), set by the caller.
    pub struct_size: u32,
    /// How far it has come: HEADCOUNT_MEMBER_*
    pub state: u32,
    /// In how many milliseconds to call `headcount_member_on_time` at the latest.
    pub next_ms: u32,
    /// 1: the descriptor of `headcount_watch_fd` is worth waiting for.
    pub listen: u32,
    /// 1: it watches all others, or is the first to take over from the one that does. Where waiting for a descriptor is
    /// expensive, the rest may do without: they learn a heartbeat later if both of these die at once.
    pub on_duty: u32,
    /// 1: it drains, and could not say so yet. The process is not to end before the next step.
    pub unsaid: u32,
}

// SAFETY: repr(C), integers only, and it begins with its size.
unsafe impl Sized32 for StepRecord {
    const NAME: &'static str = "headcount_step";
}

/// Where the caller wants the step, checked before anything is done.
#[derive(Clone, Copy)]
struct StepOut(*mut StepRecord);

impl StepOut {
    /// # Safety
    /// `pointer` is NULL or points to a writable structure that says its true size, for as long as the
    /// exported function runs.
    unsafe fn new(pointer: *mut StepRecord) -> Result<StepOut, Failure> {
        // SAFETY: by the caller's word.
        unsafe { check_struct(pointer, "step") }?;
        Ok(StepOut(pointer))
    }

    fn fill(self, step: &Step) {
        let state = match step.state {
            MemberState::Waiting => HEADCOUNT_MEMBER_WAITING,
            MemberState::Serving => HEADCOUNT_MEMBER_SERVING,
            MemberState::Draining => HEADCOUNT_MEMBER_DRAINING,
            _ => HEADCOUNT_MEMBER_LEFT,
        };
        // Not a moment too early, or it would have to be called again.
        let next_ms = u32::try_from(step.next.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX);
        let record = StepRecord {
            struct_size: size_of::<StepRecord>() as u32,
            state,
            next_ms,
            listen: u32::from(step.listen),
            on_duty: u32::from(step.on_duty),
            unsaid: u32::from(step.unsaid),
        };
        // SAFETY: checked by `new`, whose caller promised that it stays writable.
        unsafe { self.0.write(record) };
    }
}

/// Joins a generation with this process, as `headcount_join` does, and goes on from there: it beats, looks after the
/// others, says that it drains as soon as the node lock is free, all from `headcount_member_on_time`. `headcount_leave`
/// ends it.
///
/// If it fails, `step` says whether it may still come to it: HEADCOUNT_MEMBER_WAITING, and `headcount_member_on_time`
/// tries again by itself. It may be called again meanwhile, to wait once more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_member_join(
    node: *mut Handle,
    options: *const JoinOptions,
    step: *mut StepRecord,
    event: *mut EventRecord,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        let (out, options) =
            unsafe { ((StepOut::new(step)?, EventOut::new(event)?), read_struct(options, "options")?) };
        let (join, wait) = options.join()?;
        let mut process = handle.process();
        let waiting = process.member.take_if(|member| member.state() == MemberState::Waiting);
        // Not while it waits: other threads have calls to make.
        drop(process);
        let of_this = |member: &Member| member.generation().id() == options.generation;
        let mut member = waiting.filter(of_this).unwrap_or_else(|| {
            Member::new(Generation::of(&handle.node, options.generation), join, Moment::now())
        });
        let joined = member.join(Moment::now(), wait);
        let (step, failure) = match joined {
            Ok(step) => (step, None),
            Err(error) => (member.needs(Moment::now()), Some(Failure::from(error))),
        };
        out.0.fill(&step);
        member.worker().cloned().into_iter().for_each(|worker| handle.joined(worker));
        if step.state != MemberState::Left {
            handle.process().member = Some(member);
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(handle.deliver(step.transitions, out.1)),
        }
    })
}

/// What is to be done now is done: call it when `next_ms` have passed; earlier does no harm. HEADCOUNT_EVENT: as from
/// `headcount_process`, `headcount_join` or `headcount_drain`, whatever came of it. What went wrong on the way is told
/// by `headcount_notice`.
///
/// While an event of this process is not finished it beats, and leaves the rest for later.
/// HEADCOUNT_ERR_WRONG_STATE if this process is not a member.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_member_on_time(
    node: *mut Handle,
    step: *mut StepRecord,
    event: *mut EventRecord,
) -> i32 {
    // SAFETY: by the caller's word.
    unsafe { act(node, step, event, Member::on_time) }
}

/// The same when the descriptor of `headcount_watch_fd` is readable, or the waker has written 'E'; a waker that runs is
/// told that the next one may come.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_member_on_readable(
    node: *mut Handle,
    step: *mut StepRecord,
    event: *mut EventRecord,
) -> i32 {
    // SAFETY: by the caller's word.
    unsafe { act(node, step, event, Member::on_readable) }
}

/// It takes no new work from now on. HEADCOUNT_EVENT: worker_draining; it comes from a later step if the node lock is
/// not free. Calling it again does what `headcount_member_on_time` does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_member_drain(
    node: *mut Handle,
    step: *mut StepRecord,
    event: *mut EventRecord,
) -> i32 {
    // SAFETY: by the caller's word.
    unsafe { act(node, step, event, Member::begin_drain) }
}

/// # Safety
/// As that of an exported function.
unsafe fn act(
    node: *mut Handle,
    step: *mut StepRecord,
    event: *mut EventRecord,
    act: fn(&mut Member, Moment) -> Step,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        // SAFETY: NULL, or writable for as long as this call, by the caller's word.
        let (step_out, event_out) = unsafe { (StepOut::new(step)?, EventOut::new(event)?) };
        let mut process = handle.process();
        let Process { member, in_flight, waker, .. } = &mut *process;
        let Some(member) = member else {
            return Err(Failure::new(ErrorKind::WrongState, "this process is not a member, or has left"));
        };
        let was_waiting = member.state() == MemberState::Waiting;
        let step =
            if in_flight.is_some() { member.only_beat(Moment::now()) } else { act(member, Moment::now()) };
        step_out.fill(&step);
        if let Some(waker) = waker.as_ref().filter(|_| in_flight.is_none() && step.listen) {
            waker.rearm();
        }
        let late = member.worker().filter(|_| was_waiting).cloned();
        drop(process);
        late.into_iter().for_each(|worker| handle.joined(worker));
        Ok(handle.deliver(step.transitions, event_out))
    })
}
