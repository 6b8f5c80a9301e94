//! Gateways, as far as the operator's bookkeeping is concerned: they read the object, and push a while later.

use super::*;
use crate::domain::session::{self, READ_AGE_MAX, Standing, standing};

/// A push on its way to leave.
#[derive(Debug)]
pub(super) struct Knock {
    permit: PushPermit,
    pub(super) leaves: Timestamp,
    flight: Duration,
}

impl Life {
    /// Somebody connects, and the gateway pushes as late as it may; or says why it does not.
    pub fn connects(&mut self) -> Result<(), &'static str> {
        self.knocks_for(READ_AGE_MAX, PUSH_TIMEOUT)
    }

    /// A gateway reads the request now, and pushes so much later what takes so long to land.
    pub fn knocks_for(&mut self, queue: Duration, flight: Duration) -> Result<(), &'static str> {
        let Some(object) = &self.object else { return Err("gone") };
        let Standing::Live(known) = standing(object) else { return Err("no grant") };
        let permit = session::delivery(self.now, self.now, &known, Some(object)).map_err(|no_key| no_key.as_str())?;
        self.steps.push((self.now, "a gateway read it".into()));
        self.knocks.push(Knock { permit, leaves: plus(self.now, queue), flight });
        Ok(())
    }

    /// What is due leaves, and lands.
    pub(super) fn gateways_push(&mut self) {
        let now = self.now;
        let due: Vec<Knock> = self.knocks.extract_if(.., |knock| knock.leaves <= now).collect();
        for knock in due {
            // It left when it was due, whenever this is looked at.
            let Some(_push) = knock.permit.redeem(knock.leaves) else { continue };
            let from = plus(knock.leaves, knock.flight);
            self.keys.push(Key { from, until: plus(from, KEY_WINDOW) });
            self.steps.push((now, format!("a gateway's push left at {}", knock.leaves)));
        }
    }
}
