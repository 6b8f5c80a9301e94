//! Grants whose key gateways push, when somebody connects: the operator grants, looks after and ends them, and pushes
//! nothing.
//!
//! What gateways may push is `domain::session`'s to judge, by the status that is written here. They tell nobody here what
//! they pushed: so of the end the worst is assumed.

use std::time::Duration;

use jiff::Timestamp;

use crate::api::{ConditionType, KeyDelivery};
use crate::domain::cloud::InstanceId;
use crate::domain::condition::{self, ActiveReason, Saying};
use crate::domain::connect;
use crate::domain::digest::spec_digest;
use crate::domain::push::{KEY_WINDOW, PUSH_TIMEOUT};
use crate::domain::session::READ_AGE_MAX;
use crate::domain::time::{plus, since};

use super::asked::Asked;
use super::live::{Obstacle, Tell};
use super::{Deadline, Draft, is_active};

/// How long a status that takes access back may wait before it leaves, for its record and its turn. One that waited longer is
/// decided anew: what it promises counts from when it was decided.
pub const SEND_TIME_MAX: Duration = Duration::from_secs(3);
/// How long after its plan such a status may be stored; until then a gateway that reads the request is told the old. It left
/// within [`SEND_TIME_MAX`]. The shell hangs up ten seconds later; the API server may have read it at the end of those, and is
/// told to give it up ten seconds after it did.
pub const STORE_TIME_MAX: Duration = Duration::from_secs(23);

impl Draft<'_> {
    /// Whether gateways push the key, and nobody else.
    pub(super) fn is_on_connect(&self) -> bool {
        self.request.spec.key_delivery == Some(KeyDelivery::OnConnect)
    }

    /// Says that access is possible: by connecting through a gateway.
    pub(super) fn say_on_connect(&mut self, expiration: Timestamp) {
        let message = format!(
            "connect through the gateway, as status.connection.command says, until {expiration}; it delivers the key when you do, for the last time {} s before that; that AWS takes it proves neither that the login {} exists nor that sshd asks EC2 Instance Connect",
            (KEY_WINDOW + PUSH_TIMEOUT).as_secs(),
            self.request.spec.os_user
        );
        self.say(Saying::active(message));
        self.say(Saying::not_ended());
        self.unsay(ConditionType::Reconciling);
        self.unsay(ConditionType::Stalled);
    }

    /// What a person types, if gateways push and their address is known.
    pub(super) fn command_through(&self, asked: &Asked<'_>, instance_id: &InstanceId) -> Option<String> {
        let gateway = self.world.settings.gateway.as_ref().filter(|_| self.is_on_connect())?;
        Some(connect::command_through(gateway, instance_id, &asked.os_user, asked.port))
    }

    /// Keeps the command right, should the gateway have moved.
    pub(super) fn follow_gateway(&mut self, asked: &Asked<'_>) {
        let instance_id = self.status.instance.as_ref().and_then(|it| InstanceId::parse(&it.instance_id).ok());
        let Some(command) = instance_id.and_then(|id| self.command_through(asked, &id)) else { return };
        if let Some(connection) = self.status.connection.as_mut() {
            connection.command = command;
        }
    }

    /// Says whether gateways may push now. Written only where the answer changes.
    pub(super) fn tell_on_connect(&mut self, obstacle: Option<Obstacle>, expiration: Timestamp) {
        let Some(Obstacle { reason, message, heals, tell }) = obstacle else {
            if condition::active_reason(&self.status) != Some(ActiveReason::Granted.as_str()) {
                self.say_on_connect(expiration);
            }
            return;
        };
        // Just after a restart the instance is as good as the process before us saw it, for as long as a key lives.
        let inherited = plus(self.world.sight.since_time, KEY_WINDOW);
        let is_inherited = is_active(&self.status) && since(self.now, self.world.sight.since_time) < KEY_WINDOW;
        match tell {
            Tell::Never => {}
            Tell::OnceFaded if is_inherited => self.wake(Deadline::KeyWindowClosed, inherited),
            Tell::AtOnce | Tell::OnceFaded | Tell::Guard => self.hold(reason, message, heals),
        }
        if let Some(again) = self.audit_retry_time() {
            self.wake(Deadline::Retry, again);
        }
    }

    /// Until when a key may be readable by the host that a gateway pushed, at the worst: on the last read of the request
    /// that said nothing yet of an end. `None`, if none can have pushed one.
    ///
    /// A deletion and `spec.revoke` are in the object since before now, and so is its going. All else gateways read in the
    /// status that is about to be stored.
    pub(super) fn readable_by_gateways(&self) -> Option<Timestamp> {
        if !self.may_be_theirs() {
            return None;
        }
        let expiration = self.status.grant.as_ref()?.expiration_time.0;
        let read_time = match self.world.sight.gone_time {
            Some(gone_time) => gone_time,
            None if self.is_in_object() => self.now,
            None => plus(self.now, STORE_TIME_MAX),
        };
        let last = READ_AGE_MAX + PUSH_TIMEOUT + KEY_WINDOW;
        // None outlives the grant, whoever pushed it (I1).
        Some(plus(read_time, last).min(expiration))
    }

    /// Until when a status that takes access back may leave, so that its promise holds; `None`, if gateways know without it.
    pub(super) fn last_send_time(&self) -> Option<Timestamp> {
        (self.may_be_theirs() && !self.is_in_object()).then(|| plus(self.now, SEND_TIME_MAX))
    }

    /// Whether gateways may have pushed its key: of a spec that was bent since, what was granted may have been theirs.
    fn may_be_theirs(&self) -> bool {
        self.is_on_connect() || self.status.spec_digest.as_deref() != Some(&spec_digest(&self.request.spec))
    }

    /// Whether the object says by itself that access is to end.
    fn is_in_object(&self) -> bool {
        self.is_deleted() || self.request.spec.revoke.is_some()
    }
}
