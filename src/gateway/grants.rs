//! The grants that the gateway serves, found by key and by instance, each followed by the sessions that are held to it.
//!
//! No more is kept of a request than a session needs, and nothing of one without a grant. What is over is told to its
//! sessions, and forgotten.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

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
}

#[derive(Debug)]
struct Entry {
    grant: Arc<SessionGrant>,
    standing: watch::Sender<Standing>,
}

impl Grants {
    /// Takes in how a request stands now.
    pub fn see(&self, uid: &str, standing: Standing) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).see(uid, standing);
    }

    /// The request is gone.
    pub fn gone(&self, uid: &str) {
        self.see(uid, Standing::Over(EndCause::Released));
    }

    /// The request cannot be decoded any more: its sessions run to the end that is known, and no new one is opened.
    pub fn undecodable(&self, uid: &str) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = inner.by_uid.get(uid) else { return };
        let grant = SessionGrant { not_now: Some(UNDECODABLE.to_owned()), ..(*entry.grant).clone() };
        inner.see(uid, Standing::Live(Arc::new(grant)));
    }

    /// A list was read to its end: whoever is not on it is gone.
    pub fn listed(&self, uids: &HashSet<Uid>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<Uid> = inner.by_uid.keys().filter(|uid| !uids.contains(*uid)).cloned().collect();
        for uid in gone {
            inner.see(&uid, Standing::Over(EndCause::Released));
        }
    }

    /// The grants of a key.
    pub fn of_key(&self, fingerprint: &str) -> Vec<Arc<SessionGrant>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.these(inner.by_key.get(fingerprint))
    }

    /// The grants on an instance.
    pub fn on_instance(&self, instance_id: &InstanceId) -> Vec<Arc<SessionGrant>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.these(inner.by_instance.get(instance_id))
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

    fn see(&mut self, uid: &str, standing: Standing) {
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
