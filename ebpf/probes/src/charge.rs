//! Charges of memory that take a level of the tracked set past a threshold of its limit.
//!
//! The kernel calls `page_counter_try_charge` when a CPU's stock of pages that are already charged is used up: once per 64 pages
//! (`MEMCG_CHARGE_BATCH` of `mm/memcontrol.c`), for the counter of a cgroup, with all those above it. What is decided for each of
//! them, in the order of what it costs:
//!
//! ```text
//!  usage + charge is below the floor ────────── nothing: two loads and a comparison
//!  it is no level, or of another hierarchy ──── nothing
//!  above as many thresholds as before ───────── usage is remembered, for the fill rate
//!  it has made its records of this second ───── counted
//!  otherwise ────────────────────────────────── a record
//! ```
//!
//! A fall is noticed at the next charge: nothing is attached where memory is given back. It is a record, too, so that the core knows
//! of it before the next rise. Of a charge that the kernel does not let a program see (it skips one that is running on that CPU),
//! nothing is lost: the next one finds the same.
//!
//! A level is a tracked cgroup that does not lie in a container. Its limit is read at each charge, so that a changed one holds at
//! once.

use core::ptr;

use kwitness_abi::{
    Actor, CHARGE_RECORDS, CHARGE_WINDOW, COMM_LEN, Caller, Charge, ChargeSettings, ChargeStanding,
    ChargedLevel, ChargedUsage, FLAG_CHARGER, Header, MemoryCharge, RecordKind, TRACKED_COUNTED, USAGE_AGE,
};

use crate::{
    emit::{caller, header, now},
    kernel::{Access, Arguments, Counter, MemoryCgroup, Task},
    maps::{LEVELS, Ring, TRACKED, count_charge, reserve_in},
};

/// The thresholds. Filled in by the loader.
#[unsafe(no_mangle)]
static CHARGES: ChargeSettings = ChargeSettings::NONE;

/// Counters that are looked at, from the charged one up: those of a container, its pod, its QoS class and all pods, and of four
/// levels of cgroups nested in the container. Each is one more time that the verifier goes through what is done for it.
const MAX_LEVELS: u32 = 8;
/// A usage that is older says nothing of the present fill rate, in nanoseconds: if there is a younger one, and at all.
const OLD: u64 = 1_000_000_000;
const TOO_OLD: u64 = 10 * OLD;

/// Who charges, where that is not known.
const NO_CALLER: Caller =
    Caller { start_boottime: 0, cgroup_id: 0, actor: Actor { pid: 0, tid: 0, comm: [0; COMM_LEN] } };

/// A record that is due.
struct Due {
    level: &'static mut ChargedLevel,
    now: u64,
    /// In pages.
    usage: u64,
    /// The charge took usage past a threshold: not another limit did, nor a charge before that was suppressed.
    by_charge: bool,
}

/// `page_counter_try_charge(counter, pages, …)` begins. One record is made at most, of the innermost level that has one due: what is
/// due above it, the next charge finds. So the verifier goes through the making of a record once, not once for each level.
#[inline(always)]
pub fn begins<A: Access>(hook: &impl Arguments) {
    count_charge();
    let mut counter = Counter::<A>::at(hook.arg(0));
    let pages: u64 = hook.arg(1);
    // SAFETY: a static of this program; volatile, so that the compiler does not take the initial value for the final one.
    let settings = unsafe { ptr::read_volatile(&raw const CHARGES) };
    for _ in 0..MAX_LEVELS {
        let (before, limit) = counter.usage_and_limit();
        let charge = Charge { before, after: before + pages, limit };
        if settings.is_near(charge)
            && let Some(due) = near(&settings, &counter.memory_cgroup(), charge)
        {
            return report(&settings, due);
        }
        match counter.parent() {
            Some(parent) => counter = parent,
            None => return,
        }
    }
}

/// A charge that ends above the floor: what the level is by now, and whether the last record said otherwise.
#[inline(always)]
fn near(settings: &ChargeSettings, memory: &MemoryCgroup, charge: Charge) -> Option<Due> {
    let (key, serial, now) = (memory.address(), memory.serial(), now());
    // SAFETY: a live map element.
    let is_known = LEVELS.get_ptr(key).is_some_and(|level| unsafe { (*level).serial } == serial);
    if !is_known && !begin(memory, key, serial, now, charge) {
        return None;
    }
    let level = LEVELS.get_ptr_mut(key)?;
    // SAFETY: a live map element; for two at the same moment, see `ChargedLevel`.
    let level = unsafe { &mut *level };
    if now.wrapping_sub(level.later.at) >= USAGE_AGE {
        level.earlier = level.later;
        level.later = ChargedUsage { at: now, pages: charge.before };
    }
    let was_reported = level.above == level.reported;
    let ChargeStanding { above, usage } = settings.standing(level.above, charge);
    level.crossed += u64::from(level.above.abs_diff(above));
    level.above = above;
    // With another limit than at the charge before, usage may have been above before this charge.
    let by_charge = was_reported && (level.limit == charge.limit || settings.is_crossing(charge));
    level.limit = charge.limit;
    if above == level.reported {
        return None;
    }
    if now.wrapping_sub(level.window) >= CHARGE_WINDOW {
        level.window = now;
        level.records = 0;
    }
    // Beyond its share, the first charge after the window makes the record.
    (level.records < CHARGE_RECORDS).then_some(Due { level, now, usage, by_charge })
}

/// Makes a record.
#[inline(always)]
fn report(settings: &ChargeSettings, due: Due) {
    let Due { level, now, usage, by_charge } = due;
    let (above, reported) = (level.above, level.reported);
    let suppressed = level.crossed.saturating_sub(u64::from(reported.abs_diff(above)));
    // Also of a record that finds no room: its loss is counted, once.
    level.records += 1;
    level.crossed = 0;
    level.reported = above;
    let age = now.wrapping_sub(level.earlier.at);
    let is_recent = age <= OLD || (level.later.at == now && age <= TOO_OLD);
    let earlier = if is_recent { level.earlier } else { level.later };
    let task = Task::current();
    let is_charger = by_charge && above > reported && !task.is_of_kernel() && task.is_within(level.cgroup_id);
    let flags = if is_charger { FLAG_CHARGER } else { 0 };
    // Of one that is gone, no process reads that.
    let Some(tracked) = TRACKED.get_ptr(level.cgroup_id) else { return };
    // SAFETY: a live map element.
    let tracked = unsafe { &*tracked };
    let Some(mut entry) = reserve_in::<MemoryCharge>(Ring::OwnWrites, RecordKind::MemoryCharge, tracked)
    else {
        return;
    };
    let shift = settings.page_shift & 63;
    entry.write(MemoryCharge {
        // Of the same time as the usages that are remembered.
        header: Header { ktime: now, ..header(RecordKind::MemoryCharge, level.cgroup_id, flags) },
        usage: usage << shift,
        limit: level.limit << shift,
        earlier_at: earlier.at,
        earlier_usage: earlier.pages << shift,
        suppressed,
        above,
        pad: 0,
        charger: if is_charger { caller() } else { NO_CALLER },
    });
    entry.submit(0);
}

/// Begins to remember a level; whether it is one.
#[inline(always)]
fn begin(memory: &MemoryCgroup, key: u64, serial: u64, now: u64, charge: Charge) -> bool {
    let cgroup = memory.cgroup();
    let cgroup_id = cgroup.node().id();
    // SAFETY: a live map element.
    let tracked = TRACKED.get_ptr(cgroup_id).map(|tracked| unsafe { (*tracked).flags });
    let is_level = tracked.is_some_and(|flags| flags & TRACKED_COUNTED == 0) && cgroup.is_v2();
    let later = ChargedUsage { at: now, pages: charge.before };
    let level = ChargedLevel { serial, cgroup_id, later, ..NEW };
    is_level && LEVELS.insert(key, level, 0).is_ok()
}

/// A level of which nothing is remembered.
const NEW: ChargedLevel = ChargedLevel {
    serial: 0,
    cgroup_id: 0,
    limit: 0,
    later: ChargedUsage { at: 0, pages: 0 },
    earlier: ChargedUsage { at: 0, pages: 0 },
    window: 0,
    crossed: 0,
    records: 0,
    above: 0,
    reported: 0,
    pad: 0,
};
