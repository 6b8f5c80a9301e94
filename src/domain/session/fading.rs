//! A grant that was taken back, and whose last key the instance may still take.
//!
//! A pushed key cannot be called back: after a revocation it lets in for a while. The gateway cannot see which login the inner
//! SSH is. So until the key has faded its owner opens no session on that instance under any other login: it could be the one
//! that was taken back, and would then be held to the other's end.

use std::time::Duration;

use jiff::Timestamp;

use super::{READ_AGE_MAX, SessionGrant, Standing, live, standing};
use crate::api::{EndCause, InstanceAccess};
use crate::domain::push::{KEY_WINDOW, PUSH_TIMEOUT};
use crate::domain::time::plus;

/// How long after an end is heard a key may let in: another gateway's read just before it, its push, and the key's life.
pub const FADE: Duration = READ_AGE_MAX.saturating_add(PUSH_TIMEOUT).saturating_add(KEY_WINDOW);

impl SessionGrant {
    /// The same, once it is over for this cause, while its key may let in; `closed_time` is when that ends, if status says so.
    pub fn fading(&self, now: Timestamp, cause: EndCause, closed_time: Option<Timestamp>) -> Option<Self> {
        // No key outlives the time that was granted (I1).
        let fades_time = closed_time.unwrap_or(plus(now, FADE)).min(self.expiration_time);
        let fades = cause != EndCause::Expired && now < fades_time;
        fades.then(|| Self { fades_time: Some(fades_time), ..self.clone() })
    }

    /// Whether its key may let in although it is over.
    pub(super) fn is_fading(&self, now: Timestamp) -> bool {
        self.fades_time.is_some_and(|time| now < time)
    }
}

/// What a request that is over leaves behind for a while, by what stands in it.
pub fn fading(now: Timestamp, request: &InstanceAccess) -> Option<SessionGrant> {
    let Standing::Over(cause) = standing(request) else { return None };
    let status = request.status.as_ref()?;
    let grant = live(request, status, status.grant.as_ref()?)?;
    let closed_time = status.revocation.as_ref().and_then(|it| it.key_window_closed_time.as_ref());
    grant.fading(now, cause, closed_time.map(|time| time.0))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::tests::{arcs, at, dialling, grant, granted, now};
    use super::super::{Refusal, SessionGrant, permit};
    use super::*;

    const INSTANCE: &str = "i-0123456789abcdef0";

    /// Another login of the same person, taken back; by default with the same key.
    fn root(seconds: i64) -> SessionGrant {
        SessionGrant { os_user: "root".into(), fades_time: Some(at(seconds)), ..grant() }
    }

    fn asked(at_time: Timestamp, others: &[SessionGrant]) -> Result<usize, Refusal> {
        let all: Vec<Arc<SessionGrant>> = arcs(&[&[grant()][..], others].concat());
        permit(at_time, &all[..1], |_| all.clone(), INSTANCE, 22, &dialling()).map(|permit| permit.holds().len())
    }

    #[test]
    fn until_the_key_of_a_login_that_was_taken_back_has_faded_its_owner_opens_no_other_there() {
        let refusal = asked(now(), &[root(75)]).unwrap_err();
        assert_eq!(refusal.as_str(), "Fading");
        assert!(refusal.to_string().contains("your login root of web-1.team was taken back"), "{refusal}");
        asked(at(74), &[root(75)]).expect_err("the last second counts");
        // Then it is as if it had never been: nobody is held to it.
        assert_eq!(asked(at(75), &[root(75)]), Ok(1));
        // Somebody else's, the same login's, and by another key the same person's.
        let other = SessionGrant { subject: "bob".into(), key_fingerprint: "SHA256:other".into(), ..root(75) };
        assert_eq!(asked(now(), &[other]), Ok(1));
        let same = SessionGrant { os_user: grant().os_user, ..root(75) };
        assert_eq!(asked(now(), &[same]), Ok(1), "what is granted anew is granted");
        let key = SessionGrant { key_fingerprint: "SHA256:other".into(), ..root(75) };
        asked(now(), &[key]).expect_err("the person is the same");
        let told = asked(now(), &[root(10), root(75)]).unwrap_err().to_string();
        assert!(told.contains(&at(75).to_string()), "the last of them: {told}");
    }

    #[test]
    fn a_grant_fades_for_as_long_as_a_key_of_it_may_let_in_and_not_beyond_its_own_end() {
        let long = SessionGrant { expiration_time: at(3600), ..grant() };
        let short = SessionGrant { expiration_time: at(20), ..grant() };
        for (grant, cause, closed, expected) in [
            (&long, EndCause::Revoked, None, Some(at(75))),
            (&long, EndCause::Released, None, Some(at(75))),
            (&long, EndCause::PolicyChanged, Some(at(87)), Some(at(87))),
            (&long, EndCause::Revoked, Some(at(30)), Some(at(30))),
            (&short, EndCause::Revoked, None, Some(at(20))),
            (&long, EndCause::Revoked, Some(at(-1)), None),
            (&long, EndCause::Expired, None, None),
        ] {
            let fading = grant.fading(now(), cause, closed);
            assert_eq!(fading.and_then(|it| it.fades_time), expected, "{cause:?} {closed:?}");
        }
    }

    #[test]
    fn a_gateway_that_starts_meanwhile_reads_it_in_status() {
        assert_eq!(fading(now(), &granted()), None, "it lives");
        let mut object = serde_json::to_value(granted()).unwrap();
        object["status"]["revocation"] = json!({"cause": "Revoked", "keyWindowClosedTime": at(40)});
        let request: InstanceAccess = serde_json::from_value(object.clone()).unwrap();
        let left = fading(now(), &request).expect("it was taken back");
        assert_eq!((left.fades_time, left.os_user.as_str()), (Some(at(40)), "ec2-user"));
        assert_eq!(fading(at(40), &request), None, "it has faded");
        object["status"]["revocation"] = json!({"cause": "Expired"});
        assert_eq!(fading(now(), &serde_json::from_value(object).unwrap()), None, "by its end all keys have");
    }
}
