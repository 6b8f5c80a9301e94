//! When a key may be pushed, and the proof that it may.

use std::time::Duration;

use jiff::Timestamp;

use super::cloud::{InstanceId, OsUser, Place};
use super::key::PublicKey;

/// How long a host may read a pushed key. Source: AWS, SendSSHPublicKey; no call takes a key back.
pub const KEY_WINDOW: Duration = Duration::from_secs(60);
/// The longest that one SendSSHPublicKey call may take, retries of the SDK excluded: then we hang up.
///
/// AWS answers in a fraction of a second; more would only shorten the grant, whose last push must leave this much and
/// `KEY_WINDOW` before its end.
pub const PUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// Gap between two pushes of one key: the next must land before the last one fades.
pub const REPUSH_INTERVAL: Duration = Duration::from_secs(45);
const _: () = assert!(REPUSH_INTERVAL.as_secs() + PUSH_TIMEOUT.as_secs() < KEY_WINDOW.as_secs());

/// Proof that a push may leave until `not_after`. Only `lifecycle` can make one, of what the operator judged, and
/// `session`, of what a gateway read just now.
///
/// It is moved and not cloned; dropping it is a refusal.
#[derive(Debug, PartialEq, Eq)]
pub struct PushPermit {
    not_after: Timestamp,
    push: KeyPush,
}

/// What is pushed, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPush {
    /// The region to call.
    pub place: Place,
    /// The instance that will read the key.
    pub instance_id: InstanceId,
    /// Its availability zone, if it was seen.
    pub availability_zone: Option<String>,
    /// The login that the key is for.
    pub os_user: OsUser,
    /// The key.
    pub key: PublicKey,
}

impl PushPermit {
    /// Makes a permit: `domain::lifecycle` and `domain::session` alone do, after they have judged the grant.
    pub(in crate::domain) fn new(not_after: Timestamp, push: KeyPush) -> Self {
        Self { not_after, push }
    }

    /// Makes a permit out of nothing, so that whoever spends permits can be tested without a grant.
    #[cfg(test)]
    pub(crate) fn for_test(not_after: Timestamp, push: KeyPush) -> Self {
        Self::new(not_after, push)
    }

    /// The last moment at which the call may leave, a whole second in UTC.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Where the push goes: each region has its own queue.
    pub fn place(&self) -> &Place {
        &self.push.place
    }

    /// Spends the permit: returns what to push if `now` is not too late, and nothing otherwise.
    pub fn redeem(self, now: Timestamp) -> Option<KeyPush> {
        (now <= self.not_after).then_some(self.push)
    }
}
