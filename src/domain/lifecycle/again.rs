//! Whether a plan that waited its turn still means what it meant: the world may be another by then.
//!
//! Whatever gives access has a ground: a push, and a grant that is made, also one whose key gateways push.

use jiff::Timestamp;

use crate::api::{Approval, Grant, InstanceAccess, PolicyPin};
use crate::domain::time::until;

use super::{Effect, Plan};

/// What a plan that pushes a key, or makes a grant, stands on, as it is stored.
#[derive(Debug)]
pub struct Ground {
    grant: Grant,
    policy: Option<PolicyPin>,
    approvals: Vec<Approval>,
}

impl Plan {
    /// What it stands on, if it gives access: its own status, or the request's where it leaves that as it is.
    pub fn ground(&self, request: &InstanceAccess) -> Option<Ground> {
        let pushes = self.after.iter().any(|effect| matches!(effect, Effect::Push(_)));
        let has_grant = request.status.as_ref().is_some_and(|status| status.grant.is_some());
        let grants = !has_grant && self.status.as_ref().is_some_and(|status| status.grant.is_some());
        let status = self.status.as_deref().or(request.status.as_ref()).filter(|_| pushes || grants)?;
        let (grant, policy, approvals) = (status.grant.clone()?, status.policy.clone(), status.approvals.clone());
        Some(Ground { grant, policy, approvals })
    }
}

impl Ground {
    /// When the grant ends.
    pub fn expiration_time(&self) -> Timestamp {
        self.grant.expiration_time.0
    }

    /// Whether a plan on this ground may still be carried out, where a new plan would stand on another (I2, I4).
    ///
    /// It may if it gives no more: the same grant by the same policy, as it stood then, on the same people's word, and
    /// neither longer nor until later. It may have begun earlier, since it waited.
    pub fn is_within(&self, new: &Self) -> bool {
        let expiration = |ground: &Self| -> Timestamp { ground.grant.expiration_time.0 };
        let length = |ground: &Self| until(ground.grant.start_time.0, expiration(ground));
        self.grant.id == new.grant.id
            && self.policy == new.policy
            && self.approvals == new.approvals
            && expiration(self) <= expiration(new)
            && length(self) <= length(new)
    }
}
