//! Whether what guards the requests stands in the API server, and since when: who asks, and what status says, is worth
//! as much as the admission policies and the CRDs that were in force when it was written.
//!
//! ```text
//! looks, every few seconds ──▶ Lookout ──▶ Enforcement::{Unseen, Missing, Stands {since_time}} ──▶ lifecycle
//! ```
//! A look asks for every piece (a policy, a binding, a CRD). What is not seen is missing: a wrong answer here lets
//! somebody in under another's name, and a missing one makes people wait.
//!
//! An upgrade changes pieces, and is no gap. The API server counts every change of a piece's spec, by one, and nobody else
//! can: so between a version that was seen to be sound and the next one, if that is sound as well, there was no third. What
//! stood last is handed to the next leader, of whatever release ([`Vouched`]); each release answers for what it ships.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::time::{is_fresh, plus, whole_second};

mod vouched;

pub use vouched::{ERA, Vouched};

/// How long an API server may take to enforce what stands. Sources: admission policies are taken up once a second
/// (apiserver, `policyRefreshIntervalDefault`); of CRDs, API servers side by side are given 5 s (apiextensions-apiserver,
/// the wait before `Established`). Clocks of API servers that differ by less are within it.
pub const SETTLE: Duration = Duration::from_secs(5);
/// Oldest look on which anything is granted or pushed: more than silence of the API server is borne with
/// (`CONTACT_GRACE`, and a question's interval), which has a word of its own in status.
pub const LOOK_AGE_MAX: Duration = Duration::from_secs(90);

/// Whether it stands, as far as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// Nobody has looked yet.
    #[default]
    Unseen,
    /// Something is missing or bent, or could not be looked at: what, and what to do, in one sentence.
    Missing(Arc<str>),
    /// It stands as it was shipped.
    Stands {
        /// What was written at this second or before may have been written without it.
        since_time: Timestamp,
    },
}

impl Enforcement {
    /// Whether what was written at that time was surely written under enforcement that stands since. Kubernetes tells the
    /// second, and a fraction of `time` counts for nothing.
    pub fn covers(&self, time: Timestamp) -> bool {
        match self {
            Self::Stands { since_time } => whole_second(time) > *since_time,
            Self::Unseen | Self::Missing(_) => false,
        }
    }

    /// Whether a key may leave.
    pub fn stands(&self) -> bool {
        match self {
            Self::Stands { .. } => true,
            Self::Unseen | Self::Missing(_) => false,
        }
    }
}

/// What a look saw of one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its kind and name.
    pub name: String,
    /// Whether it must be there.
    pub needed: bool,
    /// How it is.
    pub state: State,
}

/// How a piece is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// As it was shipped.
    Sound(Mark),
    /// It need not be there, and is not.
    NotNeeded,
    /// Missing or bent: it surely was not enforced.
    Wrong(String),
    /// The API server does not let us look: it may be enforced or not.
    Hidden(String),
}

/// Which version of a piece was seen, and when it came to be so, by the API server's own account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Another one: it was deleted and made again.
    pub uid: String,
    /// Another one: its spec was changed. The API server alone counts it, by one each time.
    pub generation: i64,
    /// When it was made, or last changed; none if that cannot be told.
    pub changed_time: Option<Timestamp>,
}

/// Which version of a piece was sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    uid: String,
    generation: i64,
    /// A leader before us saw it, and this process did not.
    inherited: bool,
}

impl Version {
    /// Whether there was no third state between this one, which was sound, and `mark`, which is. `was_wrong`: between the two
    /// this process saw something that it does not ship.
    fn leads_to(&self, mark: &Mark, was_wrong: bool) -> bool {
        let is_same = mark.generation == self.generation && !was_wrong;
        // What the leader before us shipped was wrong in our eyes. From what we ship it takes two changes to go away and come
        // back: with one, the count began anew, as in an etcd that was restored.
        let is_next = self.generation.checked_add(1) == Some(mark.generation) && (self.inherited || !was_wrong);
        // What has no uid, or is not counted, was not told by an API server as we know it.
        !self.uid.is_empty() && self.generation > 0 && self.uid == mark.uid && (is_same || is_next)
    }
}

/// How many looks there were. Whoever wants one that was begun after something counts, since a clock may be stepped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    /// The number of the last one that was begun.
    pub begun: u64,
    /// The number of the last one that came to an answer; 0 before there was one. What was written before that one was begun,
    /// was written under what it saw, or in a gap that it found.
    pub answered: u64,
}

/// Keeps what looks saw.
#[derive(Debug)]
pub struct Lookout {
    /// The version of each piece that was last seen to be sound, by this process or by a leader before it.
    versions: BTreeMap<String, Version>,
    /// What was wrong in this process's eyes since it was last sound.
    wrong: BTreeSet<String>,
    /// When the newest piece came to be as it is, by the API server's clock.
    told_time: Timestamp,
    /// When a piece was last seen to have changed otherwise than an upgrade does, by ours.
    seen_time: Timestamp,
    missing: Option<Arc<str>>,
    /// Whether the last look found nothing wrong, but was not let see all.
    was_hidden: bool,
    /// The last look that came to an answer.
    answer_time: Option<Timestamp>,
    looks: Looks,
    /// The number of the look that is under way.
    under_way: Option<u64>,
    /// How many looks were begun when the first list of requests was through.
    listed: Option<u64>,
    /// Whether one that was begun after that came to an answer.
    is_of_list: bool,
    /// What stood when all did for the last time.
    vouched: Option<Vouched>,
    /// Whether this goes on from what a leader before us vouched for.
    goes_on: bool,
}

impl Default for Lookout {
    fn default() -> Self {
        Self {
            versions: BTreeMap::new(),
            wrong: BTreeSet::new(),
            told_time: Timestamp::MIN,
            seen_time: Timestamp::MIN,
            missing: None,
            was_hidden: false,
            answer_time: None,
            looks: Looks::default(),
            under_way: None,
            listed: None,
            is_of_list: false,
            vouched: None,
            goes_on: false,
        }
    }
}

impl Lookout {
    /// Goes on from what the leader before us vouched for. Without that, whatever stands is judged by its own account.
    /// A time that lies ahead by more than clocks may differ is nobody's: it would refuse everybody until then.
    pub fn after(now: Timestamp, vouched: Vouched) -> Self {
        if vouched.told_time() > plus(now, SETTLE) {
            return Self::default();
        }
        Self {
            told_time: vouched.told_time(),
            seen_time: vouched.seen_time(),
            versions: vouched.into_versions(),
            goes_on: true,
            ..Self::default()
        }
    }

    /// The API server has gone back to an older state: what was counted is of another history, and so is what we would hand
    /// on. Every piece is judged by its own account, as by an operator that starts; what was seen to be a gap stays one. What
    /// requests are judged by is unseen until a look that is begun from now on.
    pub fn doubt(&mut self) {
        self.versions.clear();
        self.vouched = None;
        self.goes_on = false;
        (self.looks.answered, self.under_way) = (0, None);
        // What stood, stood in another history: a look that is not let see all is no reason to believe in it.
        self.was_hidden = true;
        (self.listed, self.is_of_list) = (self.listed.map(|_| self.looks.begun), false);
    }

    /// A look begins.
    pub fn begins(&mut self) {
        self.looks.begun += 1;
        self.under_way = Some(self.looks.begun);
    }

    /// The first list of requests is through: what it showed is judged by a look that is begun from now on, since one from
    /// before says nothing of a gap between the two.
    pub fn listed(&mut self) {
        self.listed.get_or_insert(self.looks.begun);
    }

    /// Whether the next look is to come soon: the last one was not let see all, which may be for a moment.
    pub fn is_unsure(&self) -> bool {
        self.was_hidden
    }

    /// How many looks there were.
    pub fn looks(&self) -> Looks {
        self.looks
    }

    /// A look saw every piece; `remedy` says what to do if something is wrong.
    ///
    /// `now` is when the last answer came: what was wrong before stands since then at the latest. What was bent and mended
    /// between two looks has another uid, or a generation that is higher by two.
    pub fn looked(&mut self, now: Timestamp, pieces: &[Piece], remedy: &str) {
        // Of a clock that was stepped back since: what it calls the future would refuse everybody until then.
        self.seen_time = self.seen_time.min(now);
        let (mut findings, mut is_wrong) = (Vec::new(), false);
        for Piece { name, needed, state } in pieces {
            match state {
                State::Sound(mark) => self.sound(now, name, *needed, mark),
                State::NotNeeded => {
                    self.versions.remove(name);
                    if self.wrong.remove(name) {
                        self.seen_time = now; // it was bent until it went
                    }
                }
                State::Wrong(what) => {
                    is_wrong = true;
                    self.wrong.insert(name.clone());
                    findings.push(format!("{name} {what}"));
                }
                State::Hidden(what) => findings.push(format!("{name} {what}")),
            }
        }
        let was_hidden = std::mem::replace(&mut self.was_hidden, !is_wrong && !findings.is_empty());
        // An API server that starts refuses everybody for a moment, until it has read the roles: what stood may stand, and this
        // look says as little as one without an answer. A right that was taken away is missing the next time, too.
        let stood = self.missing.is_none() && self.answer_time.is_some();
        if self.was_hidden && !was_hidden && stood {
            return;
        }
        findings.sort();
        self.missing = (!findings.is_empty()).then(|| format!("{}; {remedy}", findings.join(", ")).into());
        self.answer_time = Some(now);
        self.looks.answered = self.under_way.take().unwrap_or_default();
        self.is_of_list |= self.listed.is_some_and(|listed| self.looks.answered > listed);
        if self.missing.is_none() {
            let names = pieces.iter().map(|piece| piece.name.as_str());
            let versions = names.filter_map(|name| Some((name, self.versions.get(name)?)));
            self.vouched = Some(Vouched::new(self.told_time, self.seen_time, versions));
        }
    }

    fn sound(&mut self, now: Timestamp, name: &str, needed: bool, mark: &Mark) {
        let was_wrong = self.wrong.remove(name);
        let version = Version { uid: mark.uid.clone(), generation: mark.generation, inherited: false };
        let before = self.versions.insert(name.to_owned(), version);
        let is_continuous = match &before {
            Some(before) => before.leads_to(mark, was_wrong),
            // It came with this release: whoever vouched for the others had all that it needed, without. A policy that only
            // refuses was at worst not there; and no object is older than the CRD that it was made under. What fills in may
            // have been bent under that name before, and so is judged by its own account.
            None => self.goes_on && needed && mark.generation == 1,
        };
        if is_continuous {
            return;
        }
        // By its own account, which survives our restarts. Without one, or changed before our eyes, as of now as well.
        self.told_time = self.told_time.max(mark.changed_time.unwrap_or(now));
        if before.is_some() || was_wrong {
            self.seen_time = now;
        }
    }

    /// What the next leader goes on from: what stood when all did for the last time. None before that.
    pub fn vouched(&self) -> Option<&Vouched> {
        self.vouched.as_ref()
    }

    /// A look came to no answer: who we are, or how the pieces are, is not known.
    pub fn failed(&mut self, why: &str) {
        if self.answer_time.is_none() {
            self.missing = Some(format!("the operator could not look at what guards the requests: {why}").into());
        }
    }

    /// Whether it stands now, as requests are judged by it: not before a look that was begun after they were listed.
    pub fn judged(&self, now: Timestamp) -> Enforcement {
        match self.enforcement(now) {
            Enforcement::Stands { .. } if !self.is_of_list => Enforcement::Unseen,
            known @ (Enforcement::Stands { .. } | Enforcement::Unseen | Enforcement::Missing(_)) => known,
        }
    }

    /// Whether it stands now.
    pub fn enforcement(&self, now: Timestamp) -> Enforcement {
        match (&self.missing, self.answer_time) {
            (None, None) => Enforcement::Unseen,
            (Some(missing), _) => Enforcement::Missing(Arc::clone(missing)),
            (None, Some(time)) if is_fresh(now, time, LOOK_AGE_MAX) => {
                Enforcement::Stands { since_time: plus(self.told_time.max(self.seen_time), SETTLE) }
            }
            (None, Some(time)) => Enforcement::Missing(
                format!("the operator could not look at what guards the requests since {time}; its log says why")
                    .into(),
            ),
        }
    }
}

#[cfg(test)]
mod tests;
