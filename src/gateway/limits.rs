//! Counts with a bound, by whom they are for: who is turned away never waits.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

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
        self.take_within(key, self.each_max)
    }

    /// Takes a place of each of these, which may have so many and no more than each has; or none at all, and returns the
    /// index of the first that has none left.
    pub fn take_each(self: &Arc<Self>, wanted: impl IntoIterator<Item = (K, usize)>) -> Result<Vec<Place<K>>, usize> {
        let mut places = Vec::new();
        for (key, max) in wanted {
            // What was taken so far goes back with the list.
            places.push(self.take_within(key, max).ok_or(places.len())?);
        }
        Ok(places)
    }

    fn take_within(self: &Arc<Self>, key: K, max: usize) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = taken.by_key.get(&key).copied().unwrap_or_default();
        if taken.all >= self.all_max || of_key >= self.each_max.min(max) {
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

/// Sessions that one grant opens at once without waiting: an ansible play with fifty forks.
const BURST: u32 = 50;
/// Gap between two after those: ten a second, 14 KB of records.
const GAP: Duration = Duration::from_millis(100);
/// Grants of which it is remembered; beyond that, those that rest are forgotten, which loses nothing.
const REMEMBERED_MAX: usize = 1024;

/// How fast each grant opens sessions.
#[derive(Debug, Default)]
pub struct Pace {
    // When each has used nothing of its burst; at most as many as asked within the last five seconds, and a few.
    rests_from: Mutex<HashMap<String, Instant>>,
}

impl Pace {
    /// How long the next session of this grant has to wait.
    pub fn turn(&self, grant: &str, now: Instant) -> Duration {
        let mut rests_from = self.rests_from.lock().unwrap_or_else(PoisonError::into_inner);
        if rests_from.len() >= REMEMBERED_MAX {
            rests_from.retain(|_, rests_from| *rests_from > now);
        }
        let next = rests_from.get(grant).copied().unwrap_or(now).max(now) + GAP;
        rests_from.insert(grant.to_owned(), next);
        next.saturating_duration_since(now + GAP * BURST)
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
    fn a_place_of_each_is_taken_or_none_at_all() {
        let places = Places::new(3, usize::MAX);
        let both = places.take_each([("a", 9), ("b", 2)]).unwrap();
        let one = places.take("b").unwrap();
        assert_eq!(places.take_each([("a", 9), ("b", 2)]).unwrap_err(), 1, "a third of b's two");
        assert_eq!(places.take_each([("a", 1)]).unwrap_err(), 0);
        let more = [places.take("a").unwrap(), places.take("a").unwrap()];
        assert_eq!(places.take_each([("a", 9)]).unwrap_err(), 0, "a fourth of three, whatever is wanted");
        drop((both, one, more));
        let taken = places.taken.lock().unwrap();
        assert_eq!((taken.all, taken.by_key.len()), (0, 0), "what was refused kept a place");
    }

    #[test]
    fn a_grant_opens_its_burst_at_once_and_then_ten_a_second_and_others_do_not_wait_for_it() {
        let (pace, now) = (Pace::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(pace.turn("a", now), Duration::ZERO);
        }
        assert_eq!(pace.turn("a", now), GAP);
        assert_eq!(pace.turn("a", now), GAP * 2);
        assert_eq!(pace.turn("b", now), Duration::ZERO);
        assert_eq!(pace.turn("a", now + GAP * 3), Duration::ZERO, "what was waited for is given back");
        for number in 0..2 * REMEMBERED_MAX {
            pace.turn(&number.to_string(), now + GAP * 100 * u32::try_from(number).unwrap());
        }
        assert!(pace.rests_from.lock().unwrap().len() <= REMEMBERED_MAX, "it grows without end");
    }

    #[test]
    fn a_machine_with_many_addresses_is_one_source() {
        let of = |text: &str| source(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
    }
}
