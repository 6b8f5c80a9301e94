//! Where a request meets the ledger: at its door, and when it goes.

use jiff::Timestamp;

use crate::api::{EndCause, InstanceAccessLedgerEntry};
use crate::domain::ledger::{self, Standing};

use super::{Draft, Effect, last_push_time};

/// How it reads that the API server knows less than we do.
pub(super) const FORGOTTEN: &str = "the operator remembers it or reads it in its audit trail, and the API server does not, as after etcd was restored from an older copy, or after the operator ended between its record and its write. Nothing is granted twice; if access is needed again, ask by another name";

impl Draft<'_> {
    /// Whether nothing is to be granted for the ledger's sake: another request had this grant, or nobody has read yet
    /// whether one did.
    pub(super) fn is_consumed(&mut self) -> bool {
        let until = |time: Option<Timestamp>| time.map_or_else(String::new, |time| format!(", until {time}"));
        let message = match self.world.ledger.standing(self.request) {
            Standing::Free | Standing::Closed => return false,
            Standing::Unseen => {
                self.silent = true;
                return true;
            }
            // What is left of it is less than a key lives.
            Standing::Its { until } if last_push_time(until) >= self.now => return false,
            Standing::Its { until } => format!("this request was granted until {until}, or about to be; {FORGOTTEN}"),
            Standing::Over { end_time } => format!("this request was granted before{}; {FORGOTTEN}", until(end_time)),
            Standing::Consumed { uid, end_time } => {
                let whose = uid.map_or_else(String::new, |uid| format!(", as uid {uid}"));
                format!(
                    "this very request was granted before{whose}{}, then deleted and made again; each is granted once. If access is needed again, ask by another name, or change the spec: another reason will do",
                    until(end_time)
                )
            }
        };
        self.end(EndCause::Consumed, message);
        true
    }

    /// Whether nothing is to be granted since the request was refused or withdrawn, and its status does not say so. Asked
    /// only where it would be admitted now: who is not is refused in better words.
    pub(super) fn is_closed(&mut self) -> bool {
        let is_closed = self.world.ledger.standing(self.request) == Standing::Closed;
        if is_closed {
            let message = format!("this request was refused, or withdrawn, before it was granted; {FORGOTTEN}");
            self.end(EndCause::Consumed, message);
        }
        is_closed
    }

    /// Until when the request was granted, if it was and its status does not say so: then it gets that grant, or nothing.
    pub(super) fn granted_until(&self) -> Option<Timestamp> {
        match self.world.ledger.standing(self.request) {
            Standing::Its { until } => Some(until),
            Standing::Unseen
            | Standing::Free
            | Standing::Over { .. }
            | Standing::Closed
            | Standing::Consumed { .. } => None,
        }
    }

    /// Lets the object go. One that had its grant leaves its entry first, which is durable by then.
    pub(super) fn let_go(&mut self) {
        if let Some(entry) = self.entry(self.now) {
            self.after.push(Effect::Enter(Box::new(entry)));
        }
        self.after.push(Effect::RemoveFinalizer);
    }

    /// What is to be written down of a request that vanished; none, if that stands.
    pub(super) fn entry_owed(&self, end_time: Timestamp) -> Option<InstanceAccessLedgerEntry> {
        self.entry(end_time).filter(|entry| !self.world.ledger.has(entry))
    }

    fn entry(&self, end_time: Timestamp) -> Option<InstanceAccessLedgerEntry> {
        ledger::entry(&self.world.settings.principals, self.request, &self.status, end_time)
    }
}
