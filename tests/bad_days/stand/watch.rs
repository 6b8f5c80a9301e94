//! What status says.

use std::time::Duration;

use anyhow::Context;
use instance_access::api::{Condition, InstanceAccess};
use jiff::Timestamp;

use super::{Ask, Day, Outcome, SOON, Stand};
use crate::days;

pub fn days() -> Vec<(&'static str, Day)> {
    days![a_slow_machine_excuses_no_end_but_that_for_which_no_time_was_left]
}

async fn a_slow_machine_excuses_no_end_but_that_for_which_no_time_was_left() -> Outcome {
    let rows = [
        (("Expired", false, 8.0), true),
        (("Expired", false, 0.5), false),
        (("Expired", true, 8.0), false),
        (("Revoked", false, 8.0), false),
        (("Released", false, 8.0), false),
    ];
    for ((reason, has_grant, stolen), expected) in rows {
        let found = is_of_a_slow_machine(reason, has_grant, stolen);
        anyhow::ensure!(found == expected, "{reason}, {has_grant}, {stolen}: {found}");
    }
    Ok(())
}

/// The conditions of a request, for a failure's message.
pub fn shown(object: &InstanceAccess) -> String {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    let shown: Vec<String> = conditions
        .map(|Condition { type_, status, reason, message, .. }| format!("{type_:?}={status:?} {reason}: {message}"))
        .collect();
    if shown.is_empty() { "no conditions".to_owned() } else { shown.join(" | ") }
}

fn find<'a>(object: &'a InstanceAccess, type_: &str) -> Option<&'a Condition> {
    let mut conditions = object.status.iter().flat_map(|status| &status.conditions);
    conditions.find(|condition| format!("{:?}", condition.type_) == type_)
}

/// The reason of Active: the STATUS column.
pub fn reason(object: &InstanceAccess) -> &str {
    find(object, "Active").map_or("", |active| active.reason.as_str())
}

/// Whether a condition is so.
pub fn is(object: &InstanceAccess, type_: &str, status: &str) -> Result<InstanceAccess, String> {
    match find(object, type_) {
        Some(condition) if format!("{:?}", condition.status) == status => Ok(object.clone()),
        _ => Err(shown(object)),
    }
}

/// When the grant ends.
pub fn expiration(object: &InstanceAccess) -> anyhow::Result<Timestamp> {
    let grant = object.status.as_ref().and_then(|status| status.grant.as_ref());
    Ok(grant.with_context(|| format!("no grant: {}", shown(object)))?.expiration_time.0)
}

/// Whether a request may have ended because the machine was too slow for a grant of few seconds, and for nothing else: no grant
/// was made, since its time was over, and the machine took some of it.
fn is_of_a_slow_machine(reason: &str, has_grant: bool, stolen: f64) -> bool {
    reason == "Expired" && !has_grant && stolen > STOLEN_MIN
}

/// Whoever asks for few seconds leaves some more than a grant takes; a machine that took less than this has not taken those.
const STOLEN_MIN: f64 = 2.0;

impl Stand {
    /// Waits until a request looks as it should.
    pub async fn until_within<T>(
        &self,
        name: &str,
        what: &str,
        bound: Duration,
        look: impl Fn(&InstanceAccess) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        let what = format!("{name} to be {what}");
        let waited = lab::poll::until(&what, bound, async || match self.get(name).await {
            Ok(object) => look(&object),
            Err(error) => Err(format!("{error:#}")),
        });
        waited
            .await
            .with_context(|| format!("log of {}:\n{}", self.controller.log().display(), self.controller.log_of(name)))
    }

    /// Waits until Active has this reason, whose message holds all of `words`.
    pub async fn until(&self, name: &str, wanted: &str, words: &[&str]) -> anyhow::Result<InstanceAccess> {
        let object = self
            .until_within(name, wanted, SOON, |object| {
                if reason(object) == wanted { Ok(object.clone()) } else { Err(shown(object)) }
            })
            .await?;
        let message = &find(&object, "Active").context("Active is there")?.message;
        for word in words {
            anyhow::ensure!(message.contains(word), "{name}, {wanted}: {word:?} is not in: {message}");
        }
        Ok(object)
    }

    /// Waits until it is refused for this reason, in these words.
    pub async fn until_denied(&self, name: &str, wanted: &str, words: &[&str]) -> anyhow::Result<InstanceAccess> {
        let object = self.until(name, "Denied", words).await?;
        let denied = find(&object, "Denied").context("Denied is there")?;
        anyhow::ensure!(denied.reason == wanted, "{name}: {}", shown(&object));
        is(&object, "Stalled", "True").map_err(anyhow::Error::msg)?;
        anyhow::ensure!(object.status.as_ref().is_some_and(|status| status.grant.is_none()), "{name} has a grant");
        Ok(object)
    }

    /// alice asks for so many seconds, which are few: on a machine so slow that too few of them are left for a grant, again.
    /// Returns the name of the request that was granted.
    pub async fn granted_for(&self, name: &str, instance_id: &str, seconds: i64) -> anyhow::Result<String> {
        for number in 1..=4 {
            let name = if number == 1 { name.to_owned() } else { format!("{name}-{number}") };
            let asked_time = Timestamp::now();
            self.ask(Ask::new(&name).instance(instance_id).ends_in(seconds)).await?;
            let look = |object: &InstanceAccess| is(object, "Ended", "True").or_else(|_| is(object, "Active", "True"));
            let object = self.until_within(&name, "Granted", SOON, look).await?;
            let Some(ended) = find(&object, "Ended").filter(|_| is(&object, "Ended", "True").is_ok()) else {
                return Ok(name);
            };
            let stolen = lab::pace::stolen(asked_time, Timestamp::now()).await;
            anyhow::ensure!(
                is_of_a_slow_machine(&ended.reason, expiration(&object).is_ok(), stolen),
                "{name} ended, on a machine that took {stolen:.1} s: {}",
                shown(&object)
            );
            eprintln!("{name}: {seconds} s were too few for this machine, which took {stolen:.1} s");
        }
        anyhow::bail!("{name}: {seconds} s are too few for this machine")
    }

    /// Waits until access is possible.
    pub async fn until_granted(&self, name: &str) -> anyhow::Result<InstanceAccess> {
        self.until_within(name, "Granted", SOON, |object| is(object, "Active", "True")).await
    }
}
