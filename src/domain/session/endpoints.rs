//! The connections of endpoints, which are few: 20 each, for whoever in the account uses it, by whatever program.
//!
//! A gateway counts its own, and keeps below a number that its operators give it, so that the others, and people with
//! AWS's own tools, have theirs. Of these no person takes more than a share, by however many grants. Whether there is a connection left at AWS, AWS
//! knows alone.

use std::collections::HashMap;

/// How many connections there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointLimits {
    /// Of one endpoint, for this gateway.
    pub per_endpoint_max: usize,
    /// Of these, for one person.
    pub per_user_max: usize,
}

/// Why there is none left; the text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Spent {
    /// Others have them.
    #[error(
        "{endpoint_id} carries {max} connections of this gateway, as many as it may: an endpoint has few; try again when one has ended"
    )]
    OfEndpoint {
        /// The endpoint.
        endpoint_id: String,
        /// How many there are.
        max: usize,
    },
    /// The person has them.
    #[error(
        "you have {max} connections through {endpoint_id}, as many as one person may: an endpoint has few for all; close one, or share one (ControlMaster for the instance)"
    )]
    OfUser {
        /// The endpoint.
        endpoint_id: String,
        /// How many a person may have.
        max: usize,
    },
}

impl Spent {
    /// The word for it: the metric's label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::OfEndpoint { .. } => "EndpointFull",
            Self::OfUser { .. } => "EndpointShare",
        }
    }
}

/// What is open: no more entries than connections.
#[derive(Debug)]
pub struct Endpoints {
    limits: EndpointLimits,
    // By the endpoint's id, then by the subject's user name.
    open: HashMap<String, HashMap<String, usize>>,
}

impl Endpoints {
    /// Nothing is open.
    pub fn new(limits: EndpointLimits) -> Self {
        Self { limits, open: HashMap::new() }
    }

    /// Counts one more connection of whoever has this user name.
    ///
    /// # Errors
    /// If there is none left: then nothing is counted.
    pub fn take(&mut self, endpoint_id: &str, user: &str) -> Result<(), Spent> {
        let EndpointLimits { per_endpoint_max, per_user_max } = self.limits;
        let open = self.open.get(endpoint_id);
        // The own share first: who has it is not to wait for others.
        if open.and_then(|open| open.get(user)).copied().unwrap_or_default() >= per_user_max {
            return Err(Spent::OfUser { endpoint_id: endpoint_id.to_owned(), max: per_user_max });
        }
        if open.map_or(0, |open| open.values().sum()) >= per_endpoint_max {
            return Err(Spent::OfEndpoint { endpoint_id: endpoint_id.to_owned(), max: per_endpoint_max });
        }
        *self.open.entry(endpoint_id.to_owned()).or_default().entry(user.to_owned()).or_default() += 1;
        Ok(())
    }

    /// Counts one less, which was taken.
    pub fn give_back(&mut self, endpoint_id: &str, user: &str) {
        let Some(open) = self.open.get_mut(endpoint_id) else { return };
        if let Some(count) = open.get_mut(user) {
            *count -= 1;
        }
        open.retain(|_, count| *count > 0);
        if open.is_empty() {
            self.open.remove(endpoint_id);
        }
    }

    /// How many are open, through all endpoints.
    pub fn open(&self) -> usize {
        self.open.values().flat_map(HashMap::values).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoints(per_endpoint_max: usize, per_user_max: usize) -> Endpoints {
        Endpoints::new(EndpointLimits { per_endpoint_max, per_user_max })
    }

    #[test]
    fn a_person_has_a_share_and_all_together_the_gateways_and_each_is_told_which_is_spent() {
        let mut all = endpoints(3, 2);
        all.take("eice-1", "a").unwrap();
        all.take("eice-1", "a").unwrap();
        let told = all.take("eice-1", "a").unwrap_err();
        assert_eq!(told.as_str(), "EndpointShare");
        assert!(told.to_string().contains("you have 2 connections through eice-1"), "{told}");
        all.take("eice-1", "b").unwrap();
        let told = all.take("eice-1", "c").unwrap_err();
        assert_eq!(told.as_str(), "EndpointFull");
        assert!(told.to_string().contains("eice-1 carries 3"), "{told}");
        assert_eq!(all.take("eice-1", "a").unwrap_err().as_str(), "EndpointShare", "the own share first");
        all.take("eice-2", "c").expect("another endpoint has its own");
        all.give_back("eice-1", "a");
        all.take("eice-1", "c").expect("a place was given back");
        assert_eq!(all.open(), 4);
    }

    #[test]
    fn what_was_never_taken_is_not_given_back() {
        let mut all = endpoints(1, 1);
        all.give_back("eice-1", "a");
        all.take("eice-1", "a").unwrap();
        all.give_back("eice-1", "b");
        all.give_back("eice-2", "a");
        assert_eq!(all.open(), 1);
    }

    proptest! {
        /// Whatever comes and goes: never more than the bounds, never one refused below them, and nothing is kept of the gone.
        #[test]
        fn the_count_is_what_was_taken_and_not_given_back(
            steps in proptest::collection::vec((any::<bool>(), 0..3_usize, 0..4_usize), 0..200),
            (per_endpoint_max, per_user_max) in (0..6_usize, 0..4_usize),
        ) {
            let mut all = endpoints(per_endpoint_max, per_user_max);
            let mut open = [[0_usize; 4]; 3];
            for (takes, endpoint, person) in steps {
                let (id, user) = (format!("eice-{endpoint}"), format!("u{person}"));
                if takes {
                    let of_all: usize = open[endpoint].iter().sum();
                    let may = of_all < per_endpoint_max && open[endpoint][person] < per_user_max;
                    prop_assert_eq!(all.take(&id, &user).is_ok(), may);
                    open[endpoint][person] += usize::from(may);
                } else if open[endpoint][person] > 0 {
                    all.give_back(&id, &user);
                    open[endpoint][person] -= 1;
                }
                prop_assert_eq!(all.open(), open.iter().flatten().sum::<usize>());
                let entries: usize = all.open.values().map(HashMap::len).sum();
                prop_assert_eq!(entries, open.iter().flatten().filter(|count| **count > 0).count());
            }
        }
    }
}
