//! Where a request meets the ledger: at its door, and when it goes.

use jiff::Timestamp;

use crate::api::{EndCause, InstanceAccessLedgerEntry};
use crate::domain::ledger::{self, Standing};

use super::{Draft, Effect};

impl Draft<'_> {
    /// Whether nothing is to be granted for the ledger's sake: another request had this grant, or nobody has read yet
    /// whether one did.
    pub(super) fn is_consumed(&mut self) -> bool {
        let (uid, end_time) = match self.world.ledger.standing(self.request) {
            Standing::Free => return false,
            Standing::Unseen => {
                self.silent = true;
                return true;
            }
            Standing::Consumed { uid, end_time } => (uid, end_time),
        };
        let whose = uid.map_or_else(String::new, |uid| format!(", as uid {uid}"));
        let until = end_time.map_or_else(String::new, |time| format!(", until {time}"));
        self.end(
            EndCause::Consumed,
            format!(
                "this very request was granted before{whose}{until}, then deleted and made again; each is granted once. If access is needed again, ask by another name, or change the spec: another reason will do"
            ),
        );
        true
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
