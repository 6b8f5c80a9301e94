//! Request rates: token buckets, off unless configured.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

/// One token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Tokens in a full bucket.
    pub size: f64,
    /// Tokens that come back each second.
    pub refill_per_second: f64,
}

/// Request rates per account and region. EC2's are published, EC2 Instance Connect's is not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Describe calls with ids, filters or pages.
    pub describe: Bucket,
    /// DescribeInstances without any of them.
    pub describe_all: Bucket,
    /// SendSSHPublicKey.
    pub push: Bucket,
}

impl Default for Rates {
    /// EC2's published rates, and for pushes a guess of the same order.
    fn default() -> Self {
        Self {
            describe: Bucket { size: 100.0, refill_per_second: 20.0 },
            describe_all: Bucket { size: 50.0, refill_per_second: 10.0 },
            push: Bucket { size: 100.0, refill_per_second: 20.0 },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    DescribeInstances,
    DescribeAllInstances,
    DescribeEndpoints,
    Push,
}

impl Rates {
    fn bucket(&self, lane: Lane) -> Bucket {
        match lane {
            Lane::DescribeInstances | Lane::DescribeEndpoints => self.describe,
            Lane::DescribeAllInstances => self.describe_all,
            Lane::Push => self.push,
        }
    }
}

/// Tokens left, and when they were counted.
type Level = (f64, Duration);

pub(super) struct Buckets {
    rates: Option<Rates>,
    levels: Mutex<HashMap<(Lane, String, String), Level>>,
}

impl Buckets {
    pub(super) fn new(rates: Option<Rates>) -> Self {
        Self { rates, levels: Mutex::default() }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&self, lane: Lane, account_id: &str, region: &str, now: Duration) -> bool {
        let Some(rates) = &self.rates else {
            return true;
        };
        let bucket = rates.bucket(lane);
        let mut levels = self.levels.lock().expect("no holder panics");
        let (tokens, counted) =
            levels.entry((lane, account_id.to_owned(), region.to_owned())).or_insert((bucket.size, now));
        let came = now.saturating_sub(*counted).as_secs_f64() * bucket.refill_per_second;
        *tokens = (*tokens + came).min(bucket.size);
        *counted = now;
        let there_is_one = *tokens >= 1.0;
        if there_is_one {
            *tokens -= 1.0;
        }
        there_is_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_refills_at_its_rate_for_each_account_alone() {
        let buckets = Buckets::new(Some(Rates::default()));
        let taken = |account: &str, second| {
            let now = Duration::from_secs(second);
            (0..200).filter(|_| buckets.take(Lane::DescribeInstances, account, "us-west-2", now)).count()
        };
        assert_eq!(taken("1", 0), 100);
        assert_eq!(taken("1", 1), 20);
        assert_eq!(taken("2", 1), 100);
        assert_eq!(taken("1", 60), 100);
    }
}
