//! What waits for one region: ids to be asked for together, and questions that need a call of their own.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::aws::{LOOKUP_IDS_MAX, locked};
use crate::domain::cloud::{Endpoint, Failure, Instance, InstanceId};

/// From how many ids within [`CROWD_TIME`] on it is a crowd: twice what our rate allows calls for, one each.
const CROWD: usize = 10;
const CROWD_TIME: Duration = Duration::from_secs(1);
/// From when on those that can wait go first: no crowd may last so long that grants stand on old facts.
const REFRESHES_OVERDUE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct State {
    /// The ids that somebody waits for, first come, first served; an id stands here once, whoever wants it.
    ids: VecDeque<InstanceId>,
    /// The ids that can wait: they fill up the calls that leave for others, or leave after a while. One that somebody
    /// comes to wait for stands in both, and is taken from where its turn comes first.
    refreshes: VecDeque<InstanceId>,
    /// Since when the first of `refreshes` has been waiting.
    refreshes_since: Option<Instant>,
    wanted: HashMap<InstanceId, Wanted>,
    /// Since when the first of `ids` has been waiting.
    since: Option<Instant>,
    /// When the last id came, and the one before the first of `ids`.
    last: Option<Instant>,
    before: Option<Instant>,
    /// When the last [`CROWD`] ids came.
    recent: VecDeque<Instant>,
    /// Questions that need a call of their own. An entry stays until it is answered: who asks the same joins it.
    asked: HashMap<Question, Vec<Waiter>>,
    unsent: VecDeque<Question>,
    /// Whether a task is sending what waits.
    pub(super) dispatching: bool,
    /// Whose turn it is if both wait, so that neither starves.
    ids_next: bool,
}

/// Who wants an id.
#[derive(Default)]
struct Wanted {
    waiters: Vec<Waiter>,
    /// Whether somebody waits for it.
    is_urgent: bool,
}

/// How the ids that wait have come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gathering {
    /// When the first came.
    pub(super) since: Instant,
    /// When the last came.
    pub(super) last: Instant,
    /// When the one before the first came, which has left already.
    before: Option<Instant>,
    /// Whether they are part of a crowd.
    pub(super) is_crowd: bool,
}

impl Gathering {
    /// Whether they came at one moment, and nobody shortly before.
    pub(super) fn came_alone(&self, gap: Duration) -> bool {
        self.before.is_none_or(|before| self.since - before >= gap)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    Tags(BTreeMap<String, String>),
    Endpoints(String),
}

#[derive(Clone)]
pub(super) enum Answer {
    Instances(Vec<Instance>),
    Endpoints(Vec<Endpoint>),
}

pub(super) type Waiter = oneshot::Sender<Result<Answer, Failure>>;

pub(super) enum Work {
    Ids(Vec<(InstanceId, Vec<Waiter>)>),
    Question(Question),
}

impl State {
    /// Puts an id in its place.
    pub(super) fn want(&mut self, id: InstanceId, can_wait: bool, waiter: Waiter) {
        let now = Instant::now();
        let wanted = self.wanted.entry(id.clone()).or_default();
        let is_new = wanted.waiters.is_empty();
        wanted.waiters.push(waiter);
        if can_wait {
            if is_new {
                self.refreshes.push_back(id);
                self.refreshes_since.get_or_insert(now);
            }
        } else if !std::mem::replace(&mut wanted.is_urgent, true) {
            self.ids.push_back(id);
            if self.since.is_none() {
                self.since = Some(now);
                self.before = self.last;
            }
            self.last = Some(now);
            if self.recent.len() == CROWD {
                self.recent.pop_front();
            }
            self.recent.push_back(now);
        }
    }

    pub(super) fn question(&mut self, question: Question, waiter: Waiter) {
        let waiters = self.asked.entry(question.clone()).or_default();
        if waiters.is_empty() {
            self.unsent.push_back(question);
        }
        waiters.push(waiter);
    }

    pub(super) fn gathering(&self) -> Option<Gathering> {
        let (since, last) = self.since.zip(self.last)?;
        let is_crowd =
            self.recent.len() == CROWD && self.recent.front().is_some_and(|first| first.elapsed() < CROWD_TIME);
        Some(Gathering { since, last, before: self.before, is_crowd })
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.refreshes.is_empty() && self.unsent.is_empty()
    }

    /// Since when something has waited that can wait.
    pub(super) fn refreshes_since(&self) -> Option<Instant> {
        self.refreshes_since
    }

    /// Whether there is a full call, or one that nothing else fits in.
    pub(super) fn need_not_linger(&self) -> bool {
        let is_full = |ids: &VecDeque<InstanceId>| ids.len() >= LOOKUP_IDS_MAX;
        is_full(&self.ids) || is_full(&self.refreshes) || !self.unsent.is_empty()
    }

    /// Whether half a call waits already.
    pub(super) fn is_half_full(&self) -> bool {
        self.ids.len() >= LOOKUP_IDS_MAX / 2
    }

    /// Whether whoever lingers must look again: it need not linger any more, or what comes now is the first that somebody
    /// waits for.
    pub(super) fn rings(&self) -> bool {
        self.need_not_linger() || self.ids.len() == 1
    }

    /// Takes the next call's work. Ids and questions that nobody waits for any more are let go.
    pub(super) fn take(&mut self) -> Option<Work> {
        self.ids_next = !self.ids_next;
        if self.ids_next {
            self.take_ids().or_else(|| self.take_question())
        } else {
            self.take_question().or_else(|| self.take_ids())
        }
    }

    fn take_ids(&mut self) -> Option<Work> {
        let mut batch = Vec::new();
        let is_overdue = self.refreshes_since.is_some_and(|since| since.elapsed() >= REFRESHES_OVERDUE);
        let order =
            if is_overdue { [&mut self.refreshes, &mut self.ids] } else { [&mut self.ids, &mut self.refreshes] };
        for ids in order {
            while batch.len() < LOOKUP_IDS_MAX
                && let Some(id) = ids.pop_front()
            {
                let Wanted { mut waiters, .. } = self.wanted.remove(&id).unwrap_or_default();
                waiters.retain(|waiter| !waiter.is_closed());
                if !waiters.is_empty() {
                    batch.push((id, waiters));
                }
            }
        }
        // The rest has waited, so it is part of a crowd; its next batch gathers from here.
        self.since = (!self.ids.is_empty()).then(Instant::now);
        self.before = self.last;
        if self.refreshes.is_empty() {
            self.refreshes_since = None;
        }
        (!batch.is_empty()).then_some(Work::Ids(batch))
    }

    fn take_question(&mut self) -> Option<Work> {
        while let Some(question) = self.unsent.pop_front() {
            if self.asked.get(&question).is_some_and(|waiters| waiters.iter().any(|waiter| !waiter.is_closed())) {
                return Some(Work::Question(question));
            }
            self.asked.remove(&question);
        }
        None
    }
}

/// A question under way. If its call panics, this lets it go, and all who wait for it with an error.
pub(super) struct UnderWay<'a> {
    state: &'a Mutex<State>,
    question: Option<Question>,
}

impl<'a> UnderWay<'a> {
    pub(super) fn new(state: &'a Mutex<State>, question: Question) -> Self {
        Self { state, question: Some(question) }
    }

    /// Ends it, and returns those who wait for the answer. Who asks from here on asks anew.
    pub(super) fn finish(mut self) -> Vec<Waiter> {
        self.take()
    }

    fn take(&mut self) -> Vec<Waiter> {
        let waiters = self.question.take().and_then(|question| locked(self.state).asked.remove(&question));
        waiters.unwrap_or_default()
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.take();
    }
}
