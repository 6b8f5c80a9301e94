//! The requests of the cluster, each with what this process saw of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::api::InstanceAccess;
use crate::audit::Receipt;
use crate::domain::sight::Sight;
use crate::domain::time::whole_second;
use crate::traces::Context;

use super::census::Counter;
use super::kept::{Kept, KeptSight, Samples};

/// The uid of a request: a re-created one is another.
pub type Uid = Arc<str>;

/// All requests, by uid. As many as the API server holds.
pub struct Slots {
    census: Arc<Counter>,
    all: Mutex<HashMap<Uid, Arc<Slot>>>,
    samples: Samples,
}

/// One request.
pub struct Slot {
    pub uid: Uid,
    state: Mutex<State>,
    /// Told when something happens during a turn, so that it does not wait its turn for a write that may be wrong by now.
    pub nudged: Notify,
}

/// What is known of it.
pub struct State {
    /// The newest version that was read or written.
    pub kept: Kept,
    /// What this process saw of it.
    pub sight: KeptSight,
    /// A turn is under way.
    pub running: bool,
    /// Something happened during the turn: it must look again.
    pub dirty: bool,
    /// The object is not there any more.
    pub gone: bool,
    /// Its newest version cannot be decoded: it may be a revocation.
    pub unreadable: bool,
    /// The push that waits or flies.
    pub push: Option<AbortHandle>,
    /// The newest durable record: told again after a failed write, it is not written twice.
    pub last_record: Option<Box<(u64, Receipt)>>,
    /// Writes that failed in a row.
    pub failures: u32,
    /// What woke it, as spans have it: a grant with its look-up and its push is one trace.
    pub cause: Option<Box<Context>>,
}

/// With its two counts, in the allocator's class of 256 bytes: of the next, a hundred thousand take 6 MiB more.
const _: () = assert!(size_of::<Slot>() + 2 * size_of::<usize>() <= 256);

/// What came of a watched object.
pub enum Seen {
    /// It is new, or newer than what was known.
    News(Arc<Slot>),
    /// It is known already.
    Old,
    /// What is known is newer, or of a history that was undone: a restored etcd counts from where its copy was taken.
    Behind(Arc<Slot>),
}

impl State {
    /// Whether no turn would find anything to do, whatever happens, until there is news of this very request.
    pub fn is_settled(&self) -> bool {
        self.kept.is_settled() && !self.gone
    }
}

impl Slot {
    /// Locks; nothing in here is left half-written by a panic.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    /// Keeps none yet; every version that is kept is told to the census.
    pub fn new(census: Arc<Counter>) -> Self {
        Self { census, all: Mutex::default(), samples: Samples::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uid, Arc<Slot>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a watched object, unless a newer version is known: our own writes come back through the watch.
    pub fn see(&self, object: InstanceAccess, new_sight: impl FnOnce() -> Sight) -> Option<Seen> {
        let uid: Uid = object.metadata.uid.as_deref()?.into();
        let slot = match self.lock().entry(uid) {
            Entry::Occupied(entry) => Arc::clone(entry.get()),
            Entry::Vacant(entry) => {
                self.census.see(&object);
                let slot = Arc::new(Slot {
                    uid: Arc::clone(entry.key()),
                    nudged: Notify::new(),
                    state: Mutex::new(State {
                        kept: Kept::new(object),
                        sight: KeptSight::new(new_sight()),
                        running: false,
                        dirty: false,
                        gone: false,
                        unreadable: false,
                        push: None,
                        last_record: None,
                        failures: 0,
                        cause: None,
                    }),
                });
                entry.insert(Arc::clone(&slot));
                return Some(Seen::News(slot));
            }
        };
        let mut state = slot.lock();
        if !state.kept.is_older_than(&object) {
            let behind = state.kept.is_newer_than(&object);
            drop(state);
            return Some(if behind { Seen::Behind(slot) } else { Seen::Old });
        }
        self.keep(&mut state, Arc::new(object));
        state.unreadable = false;
        drop(state);
        Some(Seen::News(slot))
    }

    /// Keeps a newer version.
    pub fn keep(&self, state: &mut State, newer: Arc<InstanceAccess>) {
        self.census.see(&newer);
        state.kept.replace(newer);
    }

    /// Whether this very version is known, and was understood: our own writes come back through the watch.
    pub fn knows(&self, metadata: &ObjectMeta) -> bool {
        let slot = metadata.uid.as_deref().and_then(|uid| self.find(uid));
        slot.is_some_and(|slot| {
            let state = slot.lock();
            state.kept.is_version(metadata) && !state.unreadable
        })
    }

    /// History was undone: of each request any version is news, also one with a number that is known.
    pub fn doubt(&self) {
        for slot in self.all() {
            slot.lock().kept.doubt();
        }
    }

    /// Returns the slot of a uid.
    pub fn find(&self, uid: &str) -> Option<Arc<Slot>> {
        self.lock().get(uid).cloned()
    }

    /// Packs a request that rests.
    pub fn close(&self, state: &mut State) {
        state.kept.close(&self.samples);
        state.sight.close(&self.samples, state.kept.alike());
    }

    /// Forgets a request whose end is settled.
    pub fn forget(&self, uid: &str) {
        let mut all = self.lock();
        all.remove(uid);
        self.census.forget(uid);
    }

    /// Returns all of them.
    pub fn all(&self) -> Vec<Arc<Slot>> {
        self.lock().values().cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }
}

/// Drops what no decision needs, so that 10,000 requests fit: managedFields alone are half of an object.
pub fn prune(object: &mut InstanceAccess) {
    let metadata = std::mem::take(&mut object.metadata);
    object.metadata = ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        generation: metadata.generation,
        creation_timestamp: metadata.creation_timestamp,
        deletion_timestamp: metadata.deletion_timestamp,
        finalizers: metadata.finalizers,
        ..ObjectMeta::default()
    };
    // Kubernetes keeps the fraction of a second that a person writes, and drops it when we write: as it would be written.
    for time in [&mut object.spec.start_time, &mut object.spec.end_time].into_iter().flatten() {
        time.0 = whole_second(time.0);
    }
}
