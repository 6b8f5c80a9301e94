//! What a decision comes to: plain data, which the shell carries out and has no choice about.

use jiff::Timestamp;

use crate::api::{AuditPointer, InstanceAccessLedgerEntry, InstanceAccessStatus};
use crate::domain::census::Claim;
use crate::domain::cloud::{Place, TargetQuery};
use crate::domain::push::PushPermit;
use crate::domain::record::Record;

/// What to do now, in this order; then when to look again. Plain data: the shell has no choice left.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Done first. A required `Audit` here is durable, or nothing below happens.
    pub before: Vec<Effect>,
    /// Stored with the resourceVersion that was read, an end also over others' edits; none: as it stands.
    pub status: Option<Box<InstanceAccessStatus>>,
    /// Until when that status may leave; the plan of one that waited longer falls, since what it promises would not hold.
    /// None: whenever.
    pub last_send_time: Option<Timestamp>,
    /// Done last, in order; each may fail, or never return.
    pub after: Vec<Effect>,
    /// The earliest named deadline.
    pub look_again: Option<(Deadline, Timestamp)>,
}

/// Something that the shell does, and tells `Sight` about.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Take a place under the policy's limits. If it does not fit any more, the plan falls.
    Claim(Box<Claim>),
    /// Give back the place that was claimed for a grant which did not come about.
    GiveBack,
    /// Append the record. If it is required and cannot be made durable, the rest of the plan falls.
    Audit {
        /// The record.
        record: Box<Record>,
        /// Whether the plan falls without it. An end never waits for audit.
        required: bool,
    },
    /// Look for the target.
    LookUpInstance {
        /// Where.
        place: Place,
        /// What for.
        query: TargetQuery,
        /// Whether nobody waits for it: the last look still holds.
        can_wait: bool,
    },
    /// Look for the endpoints of a VPC.
    LookUpEndpoints {
        /// Where.
        place: Place,
        /// Which VPC.
        vpc_id: String,
    },
    /// Push the key, against the permit.
    Push(PushPermit),
    /// Call back a push that waits its turn.
    StopPush,
    /// Put our finalizer on the request, so that its deletion ends the grant first.
    AddFinalizer,
    /// Write down that a request which goes had its grant: durable, or the rest of the plan falls.
    Enter(Box<InstanceAccessLedgerEntry>),
    /// Let the request go.
    RemoveFinalizer,
    /// Tell the people who watch events. A hint, never the audit.
    Event {
        /// Whether somebody should worry.
        warning: bool,
        /// One word.
        reason: &'static str,
        /// A sentence.
        note: String,
    },
}

/// Which writes a plan's status queues with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// An end.
    End,
    /// A grant, from its first write on.
    Grant,
    /// A word to somebody who has no grant: a refusal, or why it takes longer. It never stands before a grant.
    Word,
    /// A request that goes: its entry in the ledger, and our finalizer. A thousand that are deleted at once keep nobody
    /// else's access from ending.
    Leave,
}

/// Why the shell must look again, and until when it may rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Deadline {
    /// When to start: `spec.startTime`.
    Start,
    /// When approvals come too late.
    Approval,
    /// When to stop waiting: `spec.endTime`, or `GRANT_DEADLINE`.
    GiveUp,
    /// When too little is left of the window of the policy that admits a waiting request.
    WindowClosed,
    /// When to push again.
    Repush,
    /// When to look at the instance again.
    Refresh,
    /// When to try again what failed.
    Retry,
    /// When the last pushed key is no longer readable.
    KeyWindowClosed,
    /// When the grant ends.
    Expiration,
}

impl Plan {
    /// Whether there is nothing to do but wait.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.status.is_none() && self.after.is_empty()
    }

    /// Which queue the status takes: nobody's refusal delays another's grant, and no grant delays an end.
    pub fn lane(&self) -> Lane {
        if self.before.contains(&Effect::StopPush) {
            Lane::End
        } else if self.after.iter().any(|effect| matches!(effect, Effect::Enter(_))) {
            Lane::Leave
        } else if self.status.as_ref().is_none_or(|status| status.grant.is_some()) {
            Lane::Grant
        } else {
            Lane::Word
        }
    }

    /// Whether its status may still leave: what it promises holds.
    pub fn may_be_sent(&self, now: Timestamp) -> bool {
        self.last_send_time.is_none_or(|last| now <= last)
    }

    /// Whether its status takes access back, or says that it is over. That holds whatever others change in the request.
    pub fn is_end(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.grant.is_some() && status.revocation.is_some())
            && self.lane() == Lane::End
    }

    /// Puts the receipt of the newest record that was made durable into the status that is about to be stored; `None`,
    /// if none was, changes nothing.
    ///
    /// An end comes without a pointer: if its record could not be made durable, none is put in, and so the missing
    /// record is found and made up for later.
    pub fn point_to(&mut self, receipt: Option<AuditPointer>) {
        if let (Some(status), Some(receipt)) = (self.status.as_mut(), receipt) {
            status.audit = Some(receipt);
        }
    }
}
