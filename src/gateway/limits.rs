//! Counts with a bound, by whom they are for: who is turned away never waits.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// How many places each of many has, and all together.
#[derive(Debug)]
pub struct Places<K: Eq + Hash + Clone> {
    each_max: usize,
    all_max: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    // No more keys than places are taken.
    by_key: HashMap<K, usize>,
}

/// A place that is given back when this is dropped.
#[derive(Debug)]
pub struct Place<K: Eq + Hash + Clone> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// So many for each, and so many in all.
    pub fn new(each_max: usize, all_max: usize) -> Arc<Self> {
        Arc::new(Self { each_max, all_max, taken: Mutex::new(Taken { all: 0, by_key: HashMap::new() }) })
    }

    /// Takes a place, if there is one.
    pub fn take(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = taken.by_key.get(&key).copied().unwrap_or_default();
        if taken.all >= self.all_max || of_key >= self.each_max {
            return None;
        }
        taken.all += 1;
        taken.by_key.insert(key.clone(), of_key + 1);
        Some(Place { places: Arc::clone(self), key })
    }
}

impl<K: Eq + Hash + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        let of_key = taken.by_key.get(&self.key).copied().unwrap_or_default();
        if of_key > 1 {
            taken.by_key.insert(self.key.clone(), of_key - 1);
        } else {
            taken.by_key.remove(&self.key);
        }
    }
}

/// Who counts as one source: an IPv4 address, or an IPv6 network of 64 bits, of which one machine has all addresses.
pub fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from(u128::from(six) & !u128::from(u64::MAX))),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_so_many_places_and_all_together_so_many_and_a_place_comes_back() {
        let places = Places::new(2, 3);
        let (one, two) = (places.take("a").unwrap(), places.take("a").unwrap());
        assert!(places.take("a").is_none(), "a third of two");
        let other = places.take("b").unwrap();
        assert!(places.take("c").is_none(), "a fourth of three");
        drop(two);
        assert!(places.take("c").is_some());
        drop((one, other));
        let taken = places.taken.lock().unwrap();
        assert_eq!((taken.all, taken.by_key.len()), (0, 0));
    }

    #[test]
    fn a_machine_with_many_addresses_is_one_source() {
        let of = |text: &str| source(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
    }
}
