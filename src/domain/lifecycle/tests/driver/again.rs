//! The request made again: the ledger as the store and the shell have it, and what is left of a request that vanished.

use super::*;
use crate::api::InstanceAccessLedgerEntry;
use crate::domain::ledger::entry_name;

/// The ledger, in the store and in memory.
#[derive(Debug)]
pub(in super::super::super) struct Book {
    /// The entries in the store, by name.
    pub entries: BTreeMap<String, InstanceAccessLedgerEntry>,
    /// What the shell knows.
    pub known: Ledger,
    /// Whether the shell has read the entries yet.
    pub is_read: bool,
    /// Whether the store takes entries.
    pub works: bool,
    /// What the request was when it was made first, and how often it was.
    pub first: InstanceAccess,
    made: u32,
    /// The request, as it was last seen, that is gone and had its grant.
    gone: Option<InstanceAccess>,
}

impl Book {
    pub fn new(object: &InstanceAccess) -> Self {
        let mut book = Self {
            entries: BTreeMap::new(),
            known: Ledger::default(),
            is_read: true,
            works: true,
            first: object.clone(),
            made: 0,
            gone: None,
        };
        book.known.set_seen();
        book
    }

    /// The shell starts again, and reads what is there.
    pub fn restarts(&mut self) {
        self.gone = None;
        self.known = Ledger::default();
        self.known.set_seen();
        for (name, entry) in &self.entries {
            assert!(self.known.enter(name, Some(&entry.spec.request.uid), Some(entry.spec.end_time.0)));
        }
    }
}

impl Life {
    /// The uid of the request, as it was made last.
    pub fn uid(&self) -> String {
        if self.book.made == 0 {
            UID.to_owned()
        } else {
            format!("5a3f6a0e-5f0f-4b43-9c1a-0d4f3ad1d{:03}", self.book.made)
        }
    }

    /// The request, which is gone, is made again as it was, but for a change.
    pub fn make_again(&mut self, change: impl FnOnce(&mut InstanceAccess)) {
        assert_eq!(self.object, None, "it is still there\n{}", self.log());
        self.mourn();
        self.book.gone = None;
        self.book.made += 1;
        let mut object = self.book.first.clone();
        object.metadata.uid = Some(self.uid());
        object.metadata.creation_timestamp = Some(Time(whole_second(self.now)));
        change(&mut object);
        // Its own: what is promised of one request binds no other, but for the one grant that they have.
        self.sight = Sight::new(self.sight.since_time);
        (self.promise, self.look_again, self.last_record, self.last_status) = (None, None, None, None);
        self.bounds = [None; 3];
        (self.redeemed, self.landed) = (0, 0);
        self.stuck.clear();
        self.looks.clear();
        self.push.retain(|push| matches!(push, Push::Flies { .. }));
        self.object = Some(object);
        self.note("user: make again");
        self.sync();
    }

    /// Whether all of the request before is over, in fact too.
    pub fn is_still(&self) -> bool {
        self.object.is_none() && self.push.is_empty() && self.keys.iter().all(|key| key.until <= self.now)
    }

    /// The watch says that the object is gone, which nobody let go.
    pub(super) fn finds_gone(&mut self, was: Option<InstanceAccess>) {
        self.book.gone = was;
        self.sight.gone_time.get_or_insert(self.now);
    }

    /// The shell let the object go.
    pub(super) fn lets_go(&mut self) {
        self.book.gone = None;
        let InstanceAccess { metadata, status, .. } = self.view.clone().expect("it was there a moment ago");
        let status = status.unwrap_or_default();
        let had_grant = status.grant.is_some();
        let part = |text: Option<String>| text.unwrap_or_default();
        let name = entry_name(&part(metadata.namespace), &part(metadata.name), &part(status.spec_digest));
        assert!(
            !had_grant || self.book.entries.contains_key(&name),
            "a request that had its grant went without an entry\n{}",
            self.log()
        );
    }

    /// Writes an entry; that one stands already is as good.
    pub(super) fn enter(&mut self, entry: InstanceAccessLedgerEntry) -> Step {
        if !self.book.works {
            self.step("entry refused")?;
            return Err(Stop::Failed);
        }
        let (name, uid) = (entry.metadata.name.clone().unwrap(), entry.spec.request.uid.clone());
        let end_time = entry.spec.end_time.0;
        self.book.entries.entry(name.clone()).or_insert(entry);
        self.book.known.enter(&name, Some(&uid), Some(end_time));
        self.step("entered")
    }

    /// Does what is owed to a request that vanished.
    pub(super) fn mourn(&mut self) {
        self.look_again = None;
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "still busy with what is gone\n{}", self.log());
            let Some(gone) = self.book.gone.clone() else { return };
            let plan = vanished(self.now, &self.settings, &gone, &self.book.known, &self.sight);
            let again = plan.look_again;
            let is_done = plan.is_empty();
            match if is_done { Ok(()) } else { self.carry_out(plan) } {
                Ok(()) if again.is_none() => self.book.gone = None,
                Ok(()) if is_done => {
                    self.look_again = again;
                    return;
                }
                Err(Stop::Failed) => {
                    self.look_again = Some((Deadline::Retry, plus(self.now, seconds(1))));
                    return;
                }
                Ok(()) | Err(Stop::Fell | Stop::Crashed) => {}
            }
        }
    }
}
