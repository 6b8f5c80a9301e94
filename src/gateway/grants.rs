//! The grants that the gateway serves, found by key and by instance, each followed by the sessions that are held to it.
//!
//! No more is kept of a request than a session needs, and nothing of one without a grant. What is over is told to its
//! sessions, and forgotten when its last key has faded.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::api::EndCause;
use crate::domain::cloud::InstanceId;
use crate::domain::session::{SessionGrant, Standing};

/// A request's uid.
pub type Uid = Arc<str>;

/// The reason why a grant that cannot be read any more opens no session.
const UNDECODABLE: &str = "Undecodable";

/// All grants that have not ended. As many as the API server holds, some 600 bytes each.
#[derive(Debug, Default)]
pub struct Grants {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_uid: HashMap<Uid, Entry>,
    by_key: HashMap<String, BTreeSet<Uid>>,
    by_instance: HashMap<InstanceId, BTreeSet<Uid>>,
    /// What was taken back, by instance, until its key has faded; and in which order that is looked at.
    fading: HashMap<InstanceId, HashMap<Uid, Arc<SessionGrant>>>,
    fades: VecDeque<(Timestamp, InstanceId, Uid)>,
}

#[derive(Debug)]
struct Entry {
    grant: Arc<SessionGrant>,
    standing: watch::Sender<Standing>,
}

impl Grants {
    /// Takes in how a request stands now.
    pub fn see(&self, uid: &str, standing: Standing, now: Timestamp) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).see(uid, standing, now);
    }

    /// Takes in a grant that was taken back, and whose key may still let in.
    pub fn fade(&self, uid: &str, grant: SessionGrant, now: Timestamp) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).fade(uid, grant, now);
    }

    /// The request is gone.
    pub fn gone(&self, uid: &str, now: Timestamp) {
        self.see(uid, Standing::Over(EndCause::Released), now);
    }

    /// The request cannot be decoded any more: its sessions run to the end that is known, and no new one is opened.
    pub fn undecodable(&self, uid: &str, now: Timestamp) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = inner.by_uid.get(uid) else { return };
        let grant = SessionGrant { not_now: Some(UNDECODABLE.to_owned()), ..(*entry.grant).clone() };
        inner.see(uid, Standing::Live(Arc::new(grant)), now);
    }

    /// A list was read to its end: whoever is not on it is gone.
    pub fn listed(&self, uids: &HashSet<Uid>, now: Timestamp) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<Uid> = inner.by_uid.keys().filter(|uid| !uids.contains(*uid)).cloned().collect();
        for uid in gone {
            inner.see(&uid, Standing::Over(EndCause::Released), now);
        }
    }

    /// The grants of a key.
    pub fn of_key(&self, fingerprint: &str) -> Vec<Arc<SessionGrant>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.these(inner.by_key.get(fingerprint))
    }

    /// The grants on an instance, and those that were taken back there and may still let in.
    pub fn on_instance(&self, instance_id: &InstanceId) -> Vec<Arc<SessionGrant>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = inner.these(inner.by_instance.get(instance_id));
        all.extend(inner.fading.get(instance_id).into_iter().flat_map(HashMap::values).cloned());
        all
    }

    /// How a request stands, now and from now on; `None` if it has no grant.
    pub fn follow(&self, uid: &str) -> Option<watch::Receiver<Standing>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.by_uid.get(uid).map(|entry| entry.standing.subscribe())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).by_uid.len()
    }
}

impl Inner {
    fn these(&self, uids: Option<&BTreeSet<Uid>>) -> Vec<Arc<SessionGrant>> {
        let of = |uid: &Uid| self.by_uid.get(uid).map(|entry| Arc::clone(&entry.grant));
        uids.into_iter().flatten().filter_map(of).collect()
    }

    fn fade(&mut self, uid: &str, grant: SessionGrant, now: Timestamp) {
        while let Some((_, instance_id, uid)) = self.fades.pop_front_if(|(time, ..)| *time <= now) {
            let Some(here) = self.fading.get_mut(&instance_id) else { continue };
            here.remove(&uid);
            if here.is_empty() {
                self.fading.remove(&instance_id);
            }
        }
        let Some(time) = grant.fades_time else { return };
        let (uid, instance_id): (Uid, _) = (uid.into(), grant.instance_id.clone());
        let here = self.fading.entry(instance_id.clone()).or_default();
        // What is heard again of the same end makes it no later.
        if here.get(&uid).is_none_or(|known| known.fades_time > grant.fades_time) {
            here.insert(Arc::clone(&uid), Arc::new(grant));
            self.fades.push_back((time, instance_id, uid));
        }
    }

    fn see(&mut self, uid: &str, standing: Standing, now: Timestamp) {
        match standing {
            Standing::Live(grant) => {
                let known = self.by_uid.get(uid).map(|entry| Arc::clone(&entry.grant));
                if known.as_ref() == Some(&grant) {
                    return;
                }
                if let Some(known) = known {
                    self.unindex(uid, &known);
                }
                let uid: Uid = uid.into();
                self.by_key.entry(grant.key_fingerprint.clone()).or_default().insert(Arc::clone(&uid));
                self.by_instance.entry(grant.instance_id.clone()).or_default().insert(Arc::clone(&uid));
                match self.by_uid.get_mut(&uid) {
                    Some(entry) => {
                        entry.grant = Arc::clone(&grant);
                        entry.standing.send_replace(Standing::Live(grant));
                    }
                    None => {
                        let standing = watch::Sender::new(Standing::Live(Arc::clone(&grant)));
                        self.by_uid.insert(uid, Entry { grant, standing });
                    }
                }
            }
            over @ (Standing::Over(_) | Standing::Nothing) => {
                if let Some(entry) = self.by_uid.remove(uid) {
                    self.unindex(uid, &entry.grant);
                    let cause = if let Standing::Over(cause) = over { cause } else { EndCause::Revoked };
                    if let Some(fading) = entry.grant.fading(now, cause, None) {
                        self.fade(uid, fading, now);
                    }
                    entry.standing.send_replace(over);
                }
            }
        }
    }

    fn unindex(&mut self, uid: &str, grant: &SessionGrant) {
        if let Some(uids) = self.by_key.get_mut(&grant.key_fingerprint) {
            uids.remove(uid);
            if uids.is_empty() {
                self.by_key.remove(&grant.key_fingerprint);
            }
        }
        if let Some(uids) = self.by_instance.get_mut(&grant.instance_id) {
            uids.remove(uid);
            if uids.is_empty() {
                self.by_instance.remove(&grant.instance_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::session::standing;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_772_355_600 + second).unwrap()
    }

    /// A live grant of the request with this uid, for an hour.
    fn live(uid: &str) -> Standing {
        let request = json!({
            "apiVersion": "instanceaccess.dev/v1alpha1",
            "kind": "InstanceAccess",
            "metadata": {"name": uid, "namespace": "team", "uid": uid},
            "spec": {
                "requester": {"username": "alice"},
                "target": {"instanceId": "i-0123456789abcdef0"},
                "osUser": "ec2-user",
                "sshPublicKey": KEY,
            },
            "status": {
                "grant": {"id": "g-1", "startTime": at(0), "expirationTime": at(3600)},
                "instance": {"instanceId": "i-0123456789abcdef0"},
                "connection": {"method": "Direct", "address": "203.0.113.17", "port": 22, "command": "ssh"},
                "key": {"type": "ED25519", "bits": 256, "fingerprint": FINGERPRINT},
            },
        });
        standing(&serde_json::from_value(request).unwrap())
    }

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIInStMRqROkTDl0mY88lWxAMlcGJXz3IjvFhijzUrfeX alice";
    const FINGERPRINT: &str = "SHA256:+mVxjKne3xLrTNMqF9E3VUFQ1I7XmcajmMqwnrQqH4I";

    /// When what is on the instance has faded, of those that were taken back.
    fn fades(grants: &Grants) -> Vec<Option<Timestamp>> {
        let on_instance = grants.on_instance(&InstanceId::parse("i-0123456789abcdef0").unwrap());
        on_instance.iter().map(|grant| grant.fades_time).collect()
    }

    #[test]
    fn what_was_taken_back_is_on_its_instance_until_its_key_has_faded_and_opens_nothing() {
        let grants = Grants::default();
        grants.see("a", live("a"), at(0));
        assert_eq!(fades(&grants), [None]);
        grants.gone("a", at(10));
        assert_eq!(fades(&grants), [Some(at(85))]);
        assert!(grants.of_key(FINGERPRINT).is_empty() && grants.len() == 0 && grants.follow("a").is_none());
        // Heard again of the same end, it is no later; known better, it is earlier.
        let Standing::Live(grant) = live("a") else { panic!("it lives") };
        grants.fade("a", grant.fading(at(20), EndCause::Released, None).unwrap(), at(20));
        assert_eq!(fades(&grants), [Some(at(85))]);
        grants.fade("a", grant.fading(at(20), EndCause::Released, Some(at(60))).unwrap(), at(20));
        assert_eq!(fades(&grants), [Some(at(60))]);
        // What has faded is forgotten when the next one goes.
        grants.see("b", live("b"), at(90));
        grants.gone("b", at(100));
        assert_eq!(fades(&grants), [Some(at(175))]);
        // One that ends by the clock leaves nothing.
        grants.see("c", live("c"), at(200));
        grants.see("c", Standing::Over(EndCause::Expired), at(3600));
        assert_eq!(fades(&grants), [Some(at(175))]);
    }
}
