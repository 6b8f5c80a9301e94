//! Faults on demand.

use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::journal::Api;

/// What goes wrong, for which calls, how often.
///
/// All faults that match a call act on it: delays add up, and the first fault that ends the call ends it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Only calls to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<Api>,
    /// Only this action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Only calls that name this instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// What goes wrong.
    pub kind: FaultKind,
    /// Lets this many matching calls through first.
    #[serde(default)]
    pub after: u32,
    /// Then acts on this many calls; without it, on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// Acts with this probability, 0 to 1. The dice follow `Config::random_seed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultKind {
    /// The service's own throttling error.
    Throttle,
    /// The service's own internal error, with this HTTP status.
    ServerError(u16),
    /// Works this long (in JSON: milliseconds) before the effect, also if the client has hung up by then.
    Slow(#[serde(with = "millis")] Duration),
    /// Takes effect at once and answers this much later (in JSON: milliseconds).
    SlowAnswer(#[serde(with = "millis")] Duration),
    /// Resets the connection; nothing is done.
    Drop,
    /// Takes effect, then resets the connection without an answer.
    DoThenDrop,
    /// The caller's IAM policies do not allow it.
    Deny,
    /// The caller's temporary credentials are over.
    ExpiredCredentials,
    /// The service's clock is this many seconds ahead of the wall clock (behind, if negative) when it judges signatures.
    ClockSkew(i64),
    /// The signature is wrong.
    BadSignature,
    /// Any error.
    #[serde(rename_all = "camelCase")]
    Error {
        /// Its code, such as `EC2InstanceUnavailableException`.
        code: String,
        /// Its text.
        message: String,
        /// Its HTTP status, 400 by default.
        #[serde(default = "bad_request")]
        status: u16,
    },
    /// 200 and a body that is no answer.
    Garbage,
}

fn bad_request() -> u16 {
    400
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(it: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(it.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

impl Fault {
    /// A fault of every call, until cleared.
    pub fn new(kind: FaultKind) -> Self {
        Self { api: None, action: None, instance_id: None, kind, after: 0, times: None, probability: None }
    }

    /// Only calls to this service.
    pub fn on(self, api: Api) -> Self {
        Self { api: Some(api), ..self }
    }

    /// Only this action.
    pub fn action(self, action: &str) -> Self {
        Self { action: Some(action.into()), ..self }
    }

    /// Only calls that name this instance.
    pub fn instance(self, id: &str) -> Self {
        Self { instance_id: Some(id.into()), ..self }
    }

    /// Lets this many matching calls through first.
    pub fn after(self, calls: u32) -> Self {
        Self { after: calls, ..self }
    }

    /// Acts on this many calls.
    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Acts with this probability.
    pub fn probability(self, probability: f64) -> Self {
        Self { probability: Some(probability), ..self }
    }

    fn matches(&self, api: Api, action: &str, instance_ids: &[String]) -> bool {
        self.api.is_none_or(|it| it == api)
            && self.action.as_deref().is_none_or(|it| it == action)
            && self.instance_id.as_ref().is_none_or(|it| instance_ids.contains(it))
    }
}

/// What all matching faults together make of one call.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Mishap {
    pub(super) delay: Duration,
    pub(super) answer_delay: Duration,
    pub(super) skew: i64,
    pub(super) end: Option<FaultKind>,
}

pub(super) struct Faults {
    table: Mutex<(Vec<Fault>, u64)>,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        // xorshift never leaves zero
        Self { table: Mutex::new((Vec::new(), seed | 1)) }
    }

    pub(super) fn set(&self, fault: Fault) {
        self.table.lock().expect("no holder panics").0.push(fault);
    }

    pub(super) fn clear(&self) {
        self.table.lock().expect("no holder panics").0.clear();
    }

    pub(super) fn clear_on(&self, instance_id: &str) {
        self.table
            .lock()
            .expect("no holder panics")
            .0
            .retain(|fault| fault.instance_id.as_deref() != Some(instance_id));
    }

    pub(super) fn list(&self) -> Vec<Fault> {
        self.table.lock().expect("no holder panics").0.clone()
    }

    pub(super) fn strike(&self, api: Api, action: &str, instance_ids: &[String]) -> Mishap {
        let mut mishap = Mishap::default();
        let mut table = self.table.lock().expect("no holder panics");
        let (faults, dice) = &mut *table;
        for fault in faults.iter_mut() {
            if mishap.end.is_some() || !fault.matches(api, action, instance_ids) {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
                continue;
            }
            if let Some(probability) = fault.probability {
                *dice ^= *dice << 13;
                *dice ^= *dice >> 7;
                *dice ^= *dice << 17;
                if (*dice >> 11) as f64 / (1u64 << 53) as f64 >= probability {
                    continue;
                }
            }
            if let Some(times) = &mut fault.times {
                if *times == 0 {
                    continue;
                }
                *times -= 1;
            }
            match &fault.kind {
                FaultKind::Slow(delay) => mishap.delay += *delay,
                FaultKind::SlowAnswer(delay) => mishap.answer_delay += *delay,
                FaultKind::ClockSkew(seconds) => mishap.skew += seconds,
                kind @ (FaultKind::Throttle
                | FaultKind::ServerError(_)
                | FaultKind::Drop
                | FaultKind::DoThenDrop
                | FaultKind::Deny
                | FaultKind::ExpiredCredentials
                | FaultKind::BadSignature
                | FaultKind::Error { .. }
                | FaultKind::Garbage) => mishap.end = Some(kind.clone()),
            }
        }
        faults.retain(|fault| fault.times != Some(0));
        mishap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_lets_some_calls_through_acts_its_times_and_is_gone() {
        let faults = Faults::new(1);
        faults.set(Fault::new(FaultKind::Throttle).on(Api::Eic).after(1).times(2));
        let struck = |_| faults.strike(Api::Eic, "SendSSHPublicKey", &[]).end.is_some();
        assert_eq!((0..5).map(struck).collect::<Vec<_>>(), [false, true, true, false, false]);
        assert!(faults.list().is_empty());
    }

    #[test]
    fn a_fault_spares_other_services_actions_and_instances() {
        let faults = Faults::new(1);
        faults.set(Fault::new(FaultKind::Drop).on(Api::Eic).action("SendSSHPublicKey").instance("i-1"));
        let ids = ["i-1".to_owned()];
        assert_eq!(faults.strike(Api::Ec2, "SendSSHPublicKey", &ids), Mishap::default());
        assert_eq!(faults.strike(Api::Eic, "Other", &ids), Mishap::default());
        assert_eq!(faults.strike(Api::Eic, "SendSSHPublicKey", &["i-2".to_owned()]), Mishap::default());
        assert_eq!(faults.strike(Api::Eic, "SendSSHPublicKey", &ids).end, Some(FaultKind::Drop));
    }

    #[test]
    fn delays_add_up_before_the_first_fault_that_ends_the_call() {
        let faults = Faults::new(1);
        let second = Duration::from_secs(1);
        faults.set(Fault::new(FaultKind::Slow(second)));
        faults.set(Fault::new(FaultKind::Slow(second)));
        faults.set(Fault::new(FaultKind::Drop));
        faults.set(Fault::new(FaultKind::Throttle));
        let mishap = faults.strike(Api::Ec2, "DescribeInstances", &[]);
        assert_eq!((mishap.delay, mishap.end), (2 * second, Some(FaultKind::Drop)));
    }

    #[test]
    fn a_probability_of_a_third_strikes_about_a_third() {
        let faults = Faults::new(7);
        faults.set(Fault::new(FaultKind::Throttle).probability(0.333));
        let struck = (0..3000).filter(|_| faults.strike(Api::Ec2, "", &[]).end.is_some()).count();
        assert!((900..1100).contains(&struck), "{struck}");
    }

    #[test]
    fn a_fault_reads_as_plain_json() {
        let text = r#"{"api":"eic","kind":{"slow":1500},"times":2}"#;
        let fault: Fault = serde_json::from_str(text).unwrap();
        assert_eq!(fault, Fault::new(FaultKind::Slow(Duration::from_millis(1500))).on(Api::Eic).times(2));
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"throttle"}"#).is_ok());
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"throttle","tmies":1}"#).is_err());
    }
}
