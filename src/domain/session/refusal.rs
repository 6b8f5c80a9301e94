//! Why a client gets no session, in words that say what to do.

use jiff::Timestamp;

use crate::domain::cloud::InstanceId;

/// Why no session is opened; the text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Neither the instance, nor the request, nor the node of one of the key's grants.
    #[error("{asked} is none of your grants' instances; {known}")]
    UnknownDestination {
        /// What was asked for, bounded and printable.
        asked: String,
        /// What could be asked for.
        known: String,
    },
    /// Another port than the grant's.
    #[error("port {asked} is not granted on {instance_id}; ask for port {granted}, for instance with ssh -p {granted}")]
    WrongPort {
        /// The port that was asked for.
        asked: u32,
        /// The port of the grant.
        granted: u16,
        /// The instance.
        instance_id: InstanceId,
    },
    /// The grant's time is over.
    #[error("the grant of {request} ended at {expiration_time}; ask again with a new request")]
    Over {
        /// The request.
        request: String,
        /// When.
        expiration_time: Timestamp,
    },
    /// The grant goes on, and its policy opens no session any more.
    #[error(
        "{request} ends at {cut_time}, and its policy opens no session from {last_open_time} on; ask again with a new request"
    )]
    Draining {
        /// The request.
        request: String,
        /// When the last session could be opened.
        last_open_time: Timestamp,
        /// When open ones are cut.
        cut_time: Timestamp,
    },
    /// Another login was taken back, and its key may still let in.
    #[error(
        "your login {os_user} of {request} was taken back, and its last key may let in until {fades_time}: until then no session is opened here under another login; try again then"
    )]
    Fading {
        /// The request of the other login.
        request: String,
        /// The other login.
        os_user: String,
        /// Until when.
        fades_time: Timestamp,
    },
    /// The grant is there, and cannot be used.
    #[error("{request} is {reason}; kubectl describe instanceaccess says why, and what to do")]
    NotNow {
        /// The request.
        request: String,
        /// The reason of `Active`.
        reason: String,
    },
    /// The way leads through an endpoint.
    #[error(
        "{instance_id} is reached through an EC2 Instance Connect Endpoint, which this gateway does not dial; {remedy}"
    )]
    Endpoint {
        /// The instance.
        instance_id: InstanceId,
        /// Another way, if there is one.
        remedy: String,
    },
    /// The way leads through an endpoint, which does not connect to the grant's port.
    #[error(
        "{request} asks for port {port}, and {endpoint_id} connects to 22 and 3389 only; ask with port 22 for sshd, or with spec.connection.method Direct"
    )]
    EndpointPort {
        /// The request.
        request: String,
        /// Its port.
        port: u16,
        /// The endpoint.
        endpoint_id: String,
    },
    /// The grant's port is none that this gateway dials.
    #[error(
        "{request} asks for port {port}, and this gateway dials {served} only; reach it without the gateway, or ask the operators for --ports"
    )]
    PortNotServed {
        /// The request.
        request: String,
        /// Its port.
        port: u16,
        /// The gateway's.
        served: String,
    },
    /// Status names an address that no instance has.
    #[error(
        "status of {request} names an address that the gateway never dials; tell the operators, who may look at --never-dial"
    )]
    NeverDialled {
        /// The request.
        request: String,
    },
}

impl Refusal {
    /// The word for it: the metric's label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::UnknownDestination { .. } => "UnknownDestination",
            Self::WrongPort { .. } => "WrongPort",
            Self::Over { .. } => "Over",
            Self::Draining { .. } => "Draining",
            Self::Fading { .. } => "Fading",
            Self::NotNow { .. } => "NotNow",
            Self::Endpoint { .. } => "Endpoint",
            Self::EndpointPort { .. } => "EndpointPort",
            Self::PortNotServed { .. } => "PortNotServed",
            Self::NeverDialled { .. } => "NeverDialled",
        }
    }
}
