//! The pushes that wait for one region, earliest deadline first.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicBool};

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::domain::push::PushPermit;

use super::{Delivered, Fence, PushError};

/// Where the answer goes.
pub(super) type Answer = oneshot::Sender<Result<Delivered, PushError>>;

/// A push that waits.
pub(super) struct Entry {
    pub(super) permit: PushPermit,
    pub(super) reply: Answer,
    /// Set when the caller goes away.
    pub(super) withdrawn: Arc<AtomicBool>,
    /// Whether this one still may.
    pub(super) fence: Fence,
    /// Of two with the same deadline, the one that came first goes first.
    sequence: u64,
}

impl Entry {
    pub(super) fn not_after(&self) -> Timestamp {
        self.permit.not_after()
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(atomic::Ordering::Acquire)
    }

    pub(super) fn answer(self, outcome: Result<Delivered, PushError>) {
        // Who has gone away needs no answer.
        let _ = self.reply.send(outcome);
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.not_after(), self.sequence).cmp(&(other.not_after(), other.sequence))
    }
}

/// The queue.
#[derive(Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    sequence: u64,
    /// Whether a task is sending what waits.
    pub(super) dispatching: bool,
}

impl Queue {
    /// Puts a push in its place; `false` if `waiting_max` wait already, withdrawn ones not counted.
    pub(super) fn enter(
        &mut self,
        permit: PushPermit,
        reply: Answer,
        (withdrawn, fence): (Arc<AtomicBool>, Fence),
        waiting_max: usize,
    ) -> bool {
        if self.heap.len() >= waiting_max {
            self.heap.retain(|Reverse(entry)| !entry.is_withdrawn());
        }
        if self.heap.len() >= waiting_max {
            return false;
        }
        self.sequence += 1;
        self.heap.push(Reverse(Entry { permit, reply, withdrawn, fence, sequence: self.sequence }));
        true
    }

    /// Takes the one with the earliest deadline.
    pub(super) fn pop(&mut self) -> Option<Entry> {
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}
