//! When to look at which request again, by the wall clock.
//!
//! A sleeping timer is a hint: machines are suspended and clocks step. So the timer never sleeps longer than a second,
//! and whoever is due is judged anew by `next`.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::domain::time::until;

use super::Shared;
use super::slots::Uid;
use super::turn::wake;

/// The longest sleep without a look at the wall clock.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// The next look at each request: the earliest wins, and a new one replaces the old.
#[derive(Default)]
pub struct Timers {
    table: Mutex<Table>,
    changed: Notify,
}

#[derive(Default)]
struct Table {
    by_time: BTreeSet<(Timestamp, Uid)>,
    by_uid: HashMap<Uid, Timestamp>,
}

impl Timers {
    /// Looks at this request at that time, and not at the one that was set before.
    pub fn set(&self, uid: &Uid, time: Option<Timestamp>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = table.by_uid.remove(uid) {
            table.by_time.remove(&(old, Arc::clone(uid)));
        }
        let Some(time) = time else { return };
        let earliest = table.by_time.first().is_none_or(|(first, _)| time < *first);
        table.by_time.insert((time, Arc::clone(uid)));
        table.by_uid.insert(Arc::clone(uid), time);
        if earliest {
            self.changed.notify_one();
        }
    }

    /// How many requests are looked at again at a time of their own.
    pub fn len(&self) -> usize {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).by_uid.len()
    }

    fn due(&self, now: Timestamp) -> (Vec<Uid>, Option<Timestamp>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        while let Some((time, _)) = table.by_time.first()
            && *time <= now
        {
            let Some((_, uid)) = table.by_time.pop_first() else { break };
            table.by_uid.remove(&uid);
            due.push(uid);
        }
        (due, table.by_time.first().map(|(time, _)| *time))
    }
}

/// Wakes whoever is due, until it is stopped.
pub async fn keep_time(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let now = (shared.clock)();
        shared.health.beat.send_replace(now);
        let (due, earliest) = shared.timers.due(now);
        for uid in due {
            if let Some(slot) = shared.slots.find(&uid) {
                wake(&shared, &slot);
            }
        }
        let sleep = earliest.map_or(SLEEP_MAX, |time| until(now, time).min(SLEEP_MAX));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(sleep) => {}
            () = shared.timers.changed.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_new_time_replaces_the_old_one_also_by_a_later_one() {
        let timers = Timers::default();
        let uid: Uid = "a".into();
        timers.set(&uid, Some(at(10)));
        timers.set(&uid, Some(at(20)));
        assert_eq!(timers.len(), 1);
        assert_eq!(timers.due(at(15)), (vec![], Some(at(20))));
        assert_eq!(timers.due(at(20)), (vec![uid], None));
    }

    #[test]
    fn a_clock_that_stepped_back_keeps_the_timer_and_one_that_stepped_on_wakes_it() {
        let timers = Timers::default();
        let uid: Uid = "a".into();
        timers.set(&uid, Some(at(100)));
        assert_eq!(timers.due(at(-5)), (vec![], Some(at(100))));
        assert_eq!(timers.due(at(5000)).0, vec![uid]);
    }

    #[test]
    fn many_at_one_instant_all_wake() {
        let timers = Timers::default();
        for number in 0..1000 {
            timers.set(&format!("{number}").into(), Some(at(7)));
        }
        assert_eq!(timers.due(at(7)).0.len(), 1000);
    }
}
