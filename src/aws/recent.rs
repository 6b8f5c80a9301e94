//! A bounded map that lets go of what was unused for longest.

use std::collections::HashMap;
use std::hash::Hash;

/// Values by key, each with the number of its last use.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    uses: u64,
    all: HashMap<K, (u64, V)>,
}

impl<K: Clone + Eq + Hash, V: Clone> Recent<K, V> {
    pub(super) fn new() -> Self {
        Self { uses: 0, all: HashMap::new() }
    }

    /// Returns the value, which counts as a use of it.
    pub(super) fn get(&mut self, key: &K) -> Option<V> {
        self.uses += 1;
        let (used, value) = self.all.get_mut(key)?;
        *used = self.uses;
        Some(value.clone())
    }

    /// Makes room for one more below `max`, among those that `may_go`; `false` if there is none.
    pub(super) fn make_room(&mut self, max: usize, may_go: impl Fn(&V) -> bool) -> bool {
        if self.all.len() < max {
            return true;
        }
        let candidates = self.all.iter().filter(|(_, (_, value))| may_go(value));
        let oldest = candidates.min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
        oldest.is_some_and(|oldest| self.all.remove(&oldest).is_some())
    }

    /// Puts a value in, which counts as a use of it.
    pub(super) fn insert(&mut self, key: K, value: V) {
        self.uses += 1;
        self.all.insert(key, (self.uses, value));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.all.iter().map(|(key, (_, value))| (key, value))
    }
}
