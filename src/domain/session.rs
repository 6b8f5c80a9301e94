//! Who may open a session through the gateway, to where, and when it is cut.
//!
//! ```text
//! InstanceAccess ─ standing() ─▶ SessionGrant ─┐
//! the client's key, host and port ─ permit() ──┴─▶ DialPermit {address, holds} | Refusal
//! each held grant as it stands now ─ fate() ──────▶ Until(time) | Cut(cause)
//! ```
//! Pure. A client is whoever holds a grant's private key; it may reach what that grant names, and nothing else: no name is
//! ever resolved, and no address of the client's is ever dialled. What the bytes say is nobody's business.
//!
//! # Caveats
//! The gateway cannot see the login or the key of the inner SSH. So a session is held to every login that its client has on
//! that instance, and ends with the first of them ([`permit`]).

mod delivery;
mod endpoints;
mod fading;
mod network;
mod pushed;
mod record;
mod refusal;
mod report;
pub mod rules;
mod way;

use std::sync::Arc;

use jiff::Timestamp;

use crate::api::{ConditionStatus, ConditionType, EndCause, InstanceAccess, KeyDelivery, SessionRules};

use super::cloud::InstanceId;
use super::condition::ActiveReason;
use super::key::PublicKey;
use super::record::RequestRef;

pub use delivery::{KEY_REUSE, NoKey, READ_AGE_MAX, delivery, is_in_time, logins};
pub use endpoints::{EndpointLimits, Endpoints, Spent};
pub use fading::{FADE, fading};
pub use network::{Network, Networks};
pub use pushed::{PushRecord, PushRecordKind};
use record::USERNAME_LENGTH_MAX;
pub use record::{SessionRecord, SessionRecordKind};
pub use refusal::Refusal;
pub use report::{Next, REPORT_GAP, Report, Reports, SessionCount, Written, gateway_name, reported};
pub use way::{Addresses, Destination, ENDPOINT_PORTS, Through, Way, tunnel_end};

/// The longest text of a client's that is shown to anybody, in characters: a host name has 253 at most.
const SHOWN_LENGTH_MAX: usize = 64;
/// The most own names that a refusal tells.
const NAMES_MAX: usize = 6;

/// What the gateway keeps of a request that has a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionGrant {
    /// The request.
    pub request: RequestRef,
    /// Who asked, by user name.
    pub requester: String,
    /// Who gets in, by user name: the requester, unless a delegate asked for somebody.
    pub subject: String,
    /// The grant's id.
    pub grant_id: String,
    /// The key that lets in, `SHA256:…`.
    pub key_fingerprint: String,
    /// The instance.
    pub instance_id: InstanceId,
    /// The Kubernetes node, if it was asked for by that.
    pub node_name: Option<String>,
    /// The login on the instance.
    pub os_user: String,
    /// Who pushes the key: the operator all the time, or gateways when somebody connects.
    pub delivery: KeyDelivery,
    /// The port of sshd.
    pub port: u16,
    /// How the instance is reached.
    pub way: Way,
    /// When the grant ends, at the latest.
    pub expiration_time: Timestamp,
    /// The reason of `Active`, while the grant is there and cannot be used; new sessions wait for it.
    pub not_now: Option<String>,
    /// What binds its sessions besides its end.
    pub rules: SessionRules,
    /// Only if it is over: until when its key may let in all the same.
    pub fades_time: Option<Timestamp>,
}

/// What a request is to the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has no grant, or none that a session could be opened under.
    Nothing,
    /// It has one, until then.
    Live(Arc<SessionGrant>),
    /// It had one.
    Over(EndCause),
}

/// Why a session ended: the audit record's cause and the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SessionEnd {
    /// Cut: the clock.
    Expired,
    /// Cut: the request was deleted.
    Released,
    /// Cut: `spec.revoke`, or a decision.
    Revoked,
    /// Cut: the policy no longer admits the grant.
    PolicyChanged,
    /// Cut: the request is another grant's now. Nothing that the operator writes leads here.
    GrantChanged,
    /// Cut: nothing passed for as long as its policy, or the gateway, lets it idle.
    Idle,
    /// Cut: the gateway stops.
    GatewayStopped,
    /// The client closed it.
    ClientLeft,
    /// The instance closed it.
    InstanceLeft,
    /// The instance was not reached.
    NotReached,
    /// The endpoint's longest time for a connection was over, and the grant's was not.
    TunnelOver,
}

impl SessionEnd {
    /// Every cause, for tables and metrics.
    pub const ALL: [Self; 11] = [
        Self::Expired,
        Self::Released,
        Self::Revoked,
        Self::PolicyChanged,
        Self::GrantChanged,
        Self::Idle,
        Self::GatewayStopped,
        Self::ClientLeft,
        Self::InstanceLeft,
        Self::NotReached,
        Self::TunnelOver,
    ];

    /// The word, as it stands in audit and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => EndCause::Expired.as_str(),
            Self::Released => EndCause::Released.as_str(),
            Self::Revoked => EndCause::Revoked.as_str(),
            Self::PolicyChanged => EndCause::PolicyChanged.as_str(),
            Self::GrantChanged => "GrantChanged",
            Self::Idle => "Idle",
            Self::GatewayStopped => "GatewayStopped",
            Self::ClientLeft => "ClientLeft",
            Self::InstanceLeft => "InstanceLeft",
            Self::NotReached => "NotReached",
            Self::TunnelOver => "TunnelOver",
        }
    }

    /// What a client reads on its terminal when it is cut.
    pub fn farewell(self, request: &RequestRef) -> String {
        let name = request_name(request);
        match self {
            Self::Expired => format!("the grant of {name} has ended: its time is over; ask again with a new request"),
            Self::Released => format!("the grant of {name} has ended: the request was deleted"),
            Self::Revoked => format!("the grant of {name} has ended: it was revoked"),
            Self::PolicyChanged => format!("the grant of {name} has ended: the policy no longer admits it"),
            Self::GrantChanged => format!("the grant of {name} is not the one that this session was opened under"),
            Self::Idle => format!("the session of {name} was idle for too long; connect again"),
            Self::GatewayStopped => "the gateway stops; connect again".to_owned(),
            Self::ClientLeft | Self::InstanceLeft | Self::NotReached => format!("the session of {name} has ended"),
            Self::TunnelOver => {
                format!("the session of {name} has ended: an endpoint keeps none for over an hour; connect again")
            }
        }
    }
}

impl From<EndCause> for SessionEnd {
    fn from(cause: EndCause) -> Self {
        match cause {
            EndCause::Expired => Self::Expired,
            EndCause::Released => Self::Released,
            // What is consumed never had a grant of its own: a status that says so of one takes it back.
            EndCause::Revoked | EndCause::Consumed => Self::Revoked,
            EndCause::PolicyChanged => Self::PolicyChanged,
        }
    }
}

/// Says what a request is to the gateway, by what stands in it and without a clock.
///
/// Whatever speaks of an end counts at once, before the operator has acted on it: a deletion, `spec.revoke`.
pub fn standing(request: &InstanceAccess) -> Standing {
    let Some(status) = &request.status else { return Standing::Nothing };
    let Some(grant) = &status.grant else { return Standing::Nothing };
    if let Some(revocation) = &status.revocation {
        return Standing::Over(revocation.cause);
    }
    if request.metadata.deletion_timestamp.is_some() {
        return Standing::Over(EndCause::Released);
    }
    if request.spec.revoke.is_some() {
        return Standing::Over(EndCause::Revoked);
    }
    let is_ended = |condition: &crate::api::Condition| {
        condition.type_ == ConditionType::Ended && condition.status == ConditionStatus::True
    };
    if status.end_time.is_some() || status.conditions.iter().any(is_ended) {
        return Standing::Over(EndCause::Expired);
    }
    live(request, status, grant).map_or(Standing::Nothing, |grant| Standing::Live(Arc::new(grant)))
}

fn live(
    request: &InstanceAccess,
    status: &crate::api::InstanceAccessStatus,
    grant: &crate::api::Grant,
) -> Option<SessionGrant> {
    let metadata = &request.metadata;
    let connection = status.connection.as_ref()?;
    let key_fingerprint = PublicKey::parse(&request.spec.ssh_public_key).ok()?.fingerprint().to_owned();
    // The spec is immutable, and status says of which key it speaks: two that differ are somebody's tampering.
    if status.key.as_ref()?.fingerprint != key_fingerprint {
        return None;
    }
    let requester = request.spec.requester.as_ref()?.username.clone();
    let active = status.conditions.iter().find(|condition| condition.type_ == ConditionType::Active);
    let not_now = match active {
        Some(active) if active.status == ConditionStatus::True && active.reason == ActiveReason::Granted.as_str() => {
            None
        }
        Some(active) => Some(active.reason.clone()),
        None => Some(ActiveReason::Granting.as_str().to_owned()),
    };
    Some(SessionGrant {
        request: RequestRef {
            namespace: metadata.namespace.clone()?,
            name: metadata.name.clone()?,
            uid: metadata.uid.clone()?,
        },
        requester: requester.clone(),
        subject: request.spec.subject.as_ref().map_or(requester, |subject| subject.username.clone()),
        grant_id: grant.id.clone(),
        key_fingerprint,
        instance_id: InstanceId::parse(&status.instance.as_ref()?.instance_id).ok()?,
        node_name: request.spec.target.node_name.clone(),
        os_user: request.spec.os_user.clone(),
        delivery: request.spec.key_delivery.unwrap_or_default(),
        port: u16::try_from(connection.port).ok().filter(|port| *port > 0)?,
        way: way::way_of(status)?,
        expiration_time: grant.expiration_time.0,
        not_now,
        rules: grant.session.unwrap_or_default(),
        fades_time: None,
    })
}

/// Whether a key may come in at all: one of its grants has not ended. Whether a session may be opened is [`permit`]'s.
pub fn lets_in(now: Timestamp, of_key: &[Arc<SessionGrant>]) -> bool {
    of_key.iter().any(|grant| now < grant.expiration_time)
}

/// Proof that one session may be dialled, and what it is held to. [`permit`] alone makes one; it is moved, not cloned.
#[derive(Debug, PartialEq, Eq)]
pub struct DialPermit {
    to: Destination,
    grant: Arc<SessionGrant>,
    holds: Vec<Hold>,
}

/// One grant that a session is held to: with it, the session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The request.
    pub request: RequestRef,
    /// Its grant, as the session was opened under it.
    pub grant_id: String,
    /// When it ends, at the latest: the earliest that was ever seen.
    pub cut_time: Timestamp,
    /// What binds it besides: the strictest that was ever seen.
    pub rules: SessionRules,
}

impl DialPermit {
    /// The grant that the session is opened under.
    pub fn grant(&self) -> &Arc<SessionGrant> {
        &self.grant
    }

    /// The grants that it is held to, the one above among them.
    pub fn holds(&self) -> &[Hold] {
        &self.holds
    }

    /// What it leads to.
    pub fn to(&self) -> &Destination {
        &self.to
    }

    /// Whether it is for the same as another one: the same grant, by the same way.
    pub fn is_as(&self, other: &Self) -> bool {
        let endpoint = |permit: &Self| match &permit.to {
            Destination::Endpoint(to) => Some(to.endpoint_id.clone()),
            Destination::Direct(_) => None,
        };
        self.grant.grant_id == other.grant.grant_id && endpoint(self) == endpoint(other)
    }

    /// Spends the permit: returns what to dial and what the session is held to.
    ///
    /// # Errors
    /// A [`Refusal`], if its time is over by now. A tunnel is not worth asking for in the last second or two.
    pub fn redeem(self, now: Timestamp) -> Result<(Destination, Vec<Hold>), Refusal> {
        if let Some(refusal) = self.holds.iter().find_map(|hold| hold.refusal(now)) {
            return Err(refusal);
        }
        match &self.to {
            Destination::Endpoint(to) if to.seconds(now).is_none() => {
                let request = request_name(&self.grant.request);
                Err(Refusal::Over { request, expiration_time: to.end_time })
            }
            Destination::Endpoint(_) | Destination::Direct(_) => Ok((self.to, self.holds)),
        }
    }
}

/// What the operators of a gateway let it dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialling {
    /// Networks that are never dialled.
    pub never: Networks,
    /// The ports that are. A requester chooses the port of a request: without this, whoever may log in to an instance
    /// reaches whatever else listens there.
    pub ports: Vec<u16>,
    /// VPCs whose private addresses mean the same to the gateway: their instances are dialled by those first.
    pub private_vpcs: Vec<String>,
    /// Whether endpoints are dialled.
    pub endpoints: bool,
}

/// Judges what a client asks for: `host` and `port` as they stand in its `direct-tcpip` request.
///
/// `of_key` are the grants of the key that the client proved to have; `others` gives all grants on an instance. Of several
/// grants that fit, the one that lasts longest is taken, a request's own name picks that request.
///
/// The session is held to the grant, and for every other login that the same key or the same subject has there to the one
/// that lasts longest: the inner SSH may be any of them, and must outlive none.
///
/// # Errors
/// A [`Refusal`], which tells of no grants but the key's own.
pub fn permit(
    now: Timestamp,
    of_key: &[Arc<SessionGrant>],
    others: impl FnOnce(&InstanceId) -> Vec<Arc<SessionGrant>>,
    host: &str,
    port: u32,
    dialling: &Dialling,
) -> Result<DialPermit, Refusal> {
    let named: Vec<_> = of_key.iter().filter(|grant| is_named(grant, host)).collect();
    let Some(newest) = named.iter().max_by_key(|grant| grant.expiration_time) else {
        return Err(unknown(now, of_key, host));
    };
    // The nearest miss is told: first what is over, then what is at another port, then what cannot be used now.
    let living: Vec<_> = named.iter().filter(|grant| now < grant.expiration_time).collect();
    if living.is_empty() {
        return Err(Refusal::Over { request: request_name(&newest.request), expiration_time: newest.expiration_time });
    }
    let at_port: Vec<_> = living.iter().filter(|grant| u32::from(grant.port) == port).collect();
    if at_port.is_empty() {
        let grant = living.iter().max_by_key(|grant| grant.expiration_time).expect("it is not empty, see above");
        return Err(Refusal::WrongPort { asked: port, granted: grant.port, instance_id: grant.instance_id.clone() });
    }
    let usable = at_port.iter().filter(|grant| grant.not_now.is_none());
    // One that drains is taken if there is no other: what it holds refuses it below.
    let usable = usable.max_by_key(|grant| (grant.is_open(now), grant.expiration_time));
    let Some(grant) = usable else {
        let grant = at_port.first().expect("it is not empty, see above");
        return Err(Refusal::NotNow {
            request: request_name(&grant.request),
            reason: grant.not_now.clone().unwrap_or_default(),
        });
    };
    let on_instance = others(&grant.instance_id);
    let fading = on_instance.iter().filter(|other| other.os_user != grant.os_user && other.is_fading(now));
    let fading = fading.filter(|other| is_same_client(grant, other)).max_by_key(|other| other.fades_time);
    if let Some((fading, fades_time)) = fading.and_then(|fading| Some((fading, fading.fades_time?))) {
        let (request, os_user) = (request_name(&fading.request), fading.os_user.clone());
        return Err(Refusal::Fading { request, os_user, fades_time });
    }
    let holds = holds(now, grant, &on_instance);
    if let Some(refusal) = holds.iter().find_map(|hold| hold.refusal(now)) {
        return Err(refusal);
    }
    let end_time = holds.iter().map(|hold| hold.cut_time).min().unwrap_or(grant.expiration_time);
    let to = way::destination(grant, end_time, dialling)?;
    Ok(DialPermit { to, grant: Arc::clone(grant), holds })
}

/// Whether `host` names the grant: by instance, by request, or by node. No name is resolved.
fn is_named(grant: &SessionGrant, host: &str) -> bool {
    host == grant.instance_id.as_str()
        || host.strip_prefix(grant.request.name.as_str()).and_then(|rest| rest.strip_prefix('.'))
            == Some(grant.request.namespace.as_str())
        || grant.node_name.as_deref() == Some(host)
}

/// Whether the holder of the one may hold the other.
fn is_same_client(grant: &SessionGrant, other: &SessionGrant) -> bool {
    other.key_fingerprint == grant.key_fingerprint || other.subject == grant.subject
}

fn holds(now: Timestamp, grant: &SessionGrant, on_instance: &[Arc<SessionGrant>]) -> Vec<Hold> {
    let mut longest: Vec<&SessionGrant> = vec![grant];
    let others =
        on_instance.iter().filter(|other| other.instance_id == grant.instance_id && is_same_client(grant, other));
    for other in others.filter(|other| other.fades_time.is_none() && now < other.expiration_time) {
        match longest.iter_mut().skip(1).find(|held| held.os_user == other.os_user) {
            _ if other.os_user == grant.os_user => {}
            Some(held) if held.expiration_time < other.expiration_time => *held = other,
            Some(_) => {}
            None => longest.push(other),
        }
    }
    let hold = |grant: &SessionGrant| Hold {
        request: grant.request.clone(),
        grant_id: grant.grant_id.clone(),
        cut_time: grant.expiration_time,
        rules: grant.rules,
    };
    longest.into_iter().map(hold).collect()
}

fn unknown(now: Timestamp, of_key: &[Arc<SessionGrant>], host: &str) -> Refusal {
    let mut names: Vec<String> = of_key
        .iter()
        .filter(|grant| now < grant.expiration_time)
        .map(|grant| format!("{} ({})", grant.instance_id, request_name(&grant.request)))
        .collect();
    names.sort();
    names.truncate(NAMES_MAX);
    let known = if names.is_empty() {
        "no grant of your key is live: make a request, and wait until it is Granted".to_owned()
    } else {
        format!("ask for {}", names.join(" or "))
    };
    Refusal::UnknownDestination { asked: printable(host), known }
}

/// What a client sent, as it may be shown: bounded, and without anything that a terminal or a log would obey.
pub fn printable(text: &str) -> String {
    let mut shown: String =
        text.chars().take(SHOWN_LENGTH_MAX).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect();
    if text.chars().nth(SHOWN_LENGTH_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

/// A request as clients may ask for it.
pub fn request_name(request: &RequestRef) -> String {
    format!("{}.{}", request.name, request.namespace)
}

/// What becomes of a session, by one grant that it is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on until then, at the latest.
    Until(Timestamp),
    /// It is cut now.
    Cut(SessionEnd),
}

/// Judges a session by one of the grants that it is held to, as that stands now. An end that moved earlier is kept in the
/// hold; one that moved later counts for nothing (I3).
pub fn fate(now: Timestamp, hold: &mut Hold, standing: &Standing) -> Fate {
    match standing {
        Standing::Over(cause) => return Fate::Cut((*cause).into()),
        Standing::Live(grant) if grant.grant_id != hold.grant_id => return Fate::Cut(SessionEnd::GrantChanged),
        Standing::Live(grant) => {
            hold.cut_time = hold.cut_time.min(grant.expiration_time);
            hold.rules = rules::stricter(hold.rules, grant.rules);
        }
        // A grant whose status can no longer be served: nothing that the operator writes leads here.
        Standing::Nothing => return Fate::Cut(SessionEnd::GrantChanged),
    }
    if now < hold.cut_time { Fate::Until(hold.cut_time) } else { Fate::Cut(SessionEnd::Expired) }
}

#[cfg(test)]
mod tests;
